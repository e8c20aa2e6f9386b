"""Text as it is compared: the one normal form that duplicates, groups and leaks are judged by."""

from __future__ import annotations

import polars as pl

# Letters and digits of any script, with the marks that belong to them. Variation selectors are
# marks too, but they only pick a picture for an emoji.
_NOT_ALPHANUMERIC = r"[[^\p{L}\p{N}\p{Mn}\p{Mc}]\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}]+"


def normalise(text: pl.Expr) -> pl.Expr:
    """The text as compared: two texts are the same exactly when these are equal.

    Invisible format characters (soft hyphen, zero-width joiners, byte order mark) go, Unicode
    becomes NFKC and lower case (with sharp s as "ss"), each run of anything but letters, digits
    and their marks becomes one space, and the ends are stripped. A text with no letter or digit,
    such as an emoji, stays as it is but for the white space around it, so that two different
    emoji are different. Idempotent. String in, String out; null stays null.
    """
    plain = (
        text.str.replace_all(r"\p{Cf}+", "")
        .str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_all("ß", "ss", literal=True)
        .str.normalize("NFKC")  # lower case can leave a letter and its accent apart
        .str.replace_all(_NOT_ALPHANUMERIC, " ")
        .str.strip_chars()
    )
    return pl.when(plain == "").then(text.str.strip_chars()).otherwise(plain)
