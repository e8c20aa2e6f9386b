"""Text as it is compared, in two forms: by its words only, and by its words and signs.

``normalise`` leaves words only. It groups rows for the sides, finds leaks and what descends from an
erased row, where it is better to find too much. ``with_signs`` also keeps what carries meaning
without being a letter or a digit, and is what duplicates and contradictions are judged by. Texts
that are equal in the second form are equal in the first, variation selectors within words aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import polars as pl

SameText = Literal["signs", "words", "exact"]

# Letters and digits of any script, with the marks that belong to them. Variation selectors are
# marks too, but they only pick a picture for an emoji.
_NOT_ALPHANUMERIC = r"[[^\p{L}\p{N}\p{Mn}\p{Mc}]\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}]+"


def normalise(text: pl.Expr) -> pl.Expr:
    """The words of a text: what is left of it when only letters and digits count.

    Invisible format characters (soft hyphen, zero-width joiners, byte order mark) go, Unicode
    becomes NFKC and lower case (with sharp s as "ss"), each run of anything but letters, digits
    and their marks becomes one space, and the ends are stripped. A text with no letter or digit,
    such as an emoji, stays as it is but for the white space around it, so that two different
    emoji are different. Idempotent. String in, String out; null stays null.
    """
    plain = _folded(text.str.replace_all(r"\p{Cf}+", ""))
    plain = plain.str.replace_all(_NOT_ALPHANUMERIC, " ").str.strip_chars()
    return pl.when(plain == "").then(text.str.strip_chars()).otherwise(plain)


def _folded(text: pl.Expr) -> pl.Expr:
    return (
        text.str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_all("ß", "ss", literal=True)
        .str.normalize("NFKC")  # lower case can leave a letter and its accent apart
    )


# Format characters but for tags, and variation selectors. Tags behind a black flag say whose it is.
_UNSEEN = r"[[\p{Cf}--[\x{E0020}-\x{E007F}]]\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}]+"
_STRAY_TAGS = r"(^|[^\x{1F3F4}\x{E0020}-\x{E007F}])[\x{E0020}-\x{E007F}]+"
_SKIN_TONES = [chr(0x1_F3FB + place) for place in range(5)]
# Raised figures are no plain ones: NFKC would make 10⁵ and 105 alike. They wait in a private plane.
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_SET_ASIDE = [chr(0xF_FF00 + place) for place in range(len(_RAISED))]
_W = r"\p{L}\p{N}\p{Mn}\p{Mc}"
# One after the other. Rust's expressions look neither behind nor ahead, so what stands beside a
# sign is matched and put back, and where neighbours share it the rule is applied twice.
_RULES: tuple[tuple[str, str], ...] = (
    # One spelling of each mark.
    (r"[‘’‚‛`′]", "'"),
    (r"[“”„‟«»〝〞]|''", '"'),
    (r"[‐‑‒–—―−⁃]", "-"),
    (r"[؟⸮]", "?"),
    (r"。", "."),
    (r"[、،]", ","),
    # Emoji are words of their own.
    (r"\s*(\p{So}+)\s*", " $1 "),
    # Quotation marks, but for apostrophes and for feet and inches.
    (rf'([{_W}])"+([{_W}])', "$1 $2"),
    (rf'([{_W}])"+([{_W}])', "$1 $2"),
    (r'(^|[^\p{N}])"+', "$1"),
    (rf"(^|[^{_W}])'+", "$1"),
    (rf"([\p{{L}}\p{{Mn}}\p{{Mc}}])'+([^{_W}]|$)", "$1$2"),
    # Commas and hyphens between words.
    (r"(\p{L})(?:[,;-]|\.\.+)+(\p{L})", "$1 $2"),
    (r"(\p{L})(?:[,;-]|\.\.+)+(\p{L})", "$1 $2"),
    # What ends a word or a sentence, but for question marks.
    (r"[.,]+(\s|$)", "$1"),
    (rf"([{_W}])[;:]+(\s|$)", "$1$2"),
    (r"([\p{L}\p{Mn}\p{Mc}])\s*!+(\s|$)", "$1$2"),
    (r"([\p{L}\p{Mn}\p{Mc}])\s*\?+(\s|$)", "$1?$2"),
    (r"([\p{L}\p{Mn}\p{Mc}]\?)([\p{L}\p{N}])", "$1 $2"),
    (r"[\s\p{Cc}]+", " "),
)


def with_signs(text: pl.Expr) -> pl.Expr:
    """The words and signs of a text: two texts are the same exactly when these are equal.

    As ``normalise`` for letters and digits. Of everything else only what a writer may as well leave
    out goes: quotation marks; hyphens and commas between letters; full stops, commas, colons and
    semicolons at the end of a word, and exclamation marks at the end of one of letters; variation
    selectors and skin tones of emoji. Typographic variants of quotes and dashes are one. So ``C++``
    and ``C#``, ``:)`` and ``:(``, ``-3.5`` and ``3.5``, ``No!`` and ``No?`` are different, "Hello."
    and "hello" are not. What would leave nothing stays as it is. String in, String out; null stays
    null.
    """
    seen = text.str.replace_all(_UNSEEN, "").str.replace_all(_STRAY_TAGS, "$1")
    seen = seen.str.replace_many(_SET_ASIDE + _SKIN_TONES, [" "])
    raised = seen.str.replace_many(list(_RAISED), _SET_ASIDE)
    start = _folded(raised).str.replace_many(_SET_ASIDE, list(_RAISED))
    plain = start
    for _ in range(2):  # what one rule leaves may be what another one, before it, is for
        for pattern, by in _RULES:
            plain = plain.str.replace_all(pattern, by)
        plain = plain.str.strip_chars()
    return pl.when(plain == "").then(text.str.strip_chars()).otherwise(plain)


def exact(text: pl.Expr) -> pl.Expr:
    """Every character counts, but for white space around the text and how accents are coded."""
    return text.str.normalize("NFC").str.strip_chars()


# What the key ``validate.same_text`` may say.
FORMS: Mapping[SameText, Callable[[pl.Expr], pl.Expr]] = {
    "signs": with_signs,
    "words": normalise,
    "exact": exact,
}
