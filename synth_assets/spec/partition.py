"""How human rows are put on their sides: by shares, or as the data itself says."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from synth_assets.cells import tidy
from synth_assets.errors import shown
from synth_assets.spec.base import Name, Number, Strict, fail

Share = Annotated[Number, Field(gt=0, lt=1)]
NearCopies = Literal["drop_train", "drop_holdout", "keep"]


def _fold(value: object) -> object:
    """A value of the fold column, as labels are compared (``cells.tidy``)."""
    if not isinstance(value, str):
        raise fail(
            "fold",
            "a value of the column is a text",
            value=shown(value),
            fix="put it in quotes, as it stands in the column: 'test', '1'",
        )
    if not tidy(value):
        raise fail(
            "fold",
            "a blank cell belongs to no fold",
            fix="name values; rows whose cell is blank are set aside",
        )
    return tidy(value)


Folds = Annotated[list[Annotated[str, BeforeValidator(_fold)]], Field(min_length=1)]


def _kind(value: object) -> str | None:
    """A list names values of the column; a number is a share; anything else is neither."""
    if isinstance(value, list):
        return "folds"
    return "share" if isinstance(value, int | float) and not isinstance(value, bool) else None


_SHARE_OR_FOLDS = Discriminator(
    _kind,
    custom_error_type="side",
    custom_error_message="write a share (0.3) or, with partition.column, a list of its values "
    "([test])",
)
HoldoutSide = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Folds, Tag("folds")], _SHARE_OR_FOLDS
]
ValidationSide = Annotated[
    Annotated[Number, Field(ge=0, lt=1), Tag("share")] | Annotated[Folds, Tag("folds")],
    _SHARE_OR_FOLDS,
]


class Partition(Strict):
    """Shares of the human rows, by a salted hash, so that rows never move; or the official folds of
    a column. Sources can also say the side of all their rows (`split`)."""

    column: Name | None = Field(
        default=None,
        description="Source column with the official fold of each row. `holdout`, and maybe "
        "`validation`, then list its values; a row whose cell is blank is set aside.",
    )
    holdout: HoldoutSide = Field(
        default=0.3, description="A share; with `column`, the list of values that are the test set."
    )
    validation: ValidationSide = Field(
        default=0.1,
        description="A share; with `column`, a list of values, or a share of the training rows.",
    )
    train: Folds | None = Field(
        default=None,
        description="With `column`: the values to train on; rows with any other are set aside. "
        "Left out: every value that is in neither list.",
    )
    near_copies: NearCopies = Field(
        default="drop_train",
        description="Which of two rows on different sides that are near-copies, or of one group, "
        "is set aside: the one further from the test set, the one nearer to it (the test set "
        "shrinks), or none (the verdict is then too good). A text that stands on two sides word "
        "for word is kept once in any case.",
    )
    group_by: list[Name] = Field(
        default_factory=list,
        description="Source columns; rows that agree in all of them stay on one side. "
        "Left out: rows with the same normalised text stay together.",
    )
    salt: str = "1"

    @property
    def folds(self) -> dict[str, list[str]]:
        """Side -> the values of ``column`` that are listed for it."""
        listed = {"holdout": self.holdout, "validation": self.validation, "train": self.train}
        return {side: values for side, values in listed.items() if isinstance(values, list)}

    @property
    def validation_share(self) -> float:
        """The share of rows that a hash makes validation rows."""
        return self.validation if isinstance(self.validation, float) else 0.0

    @property
    def holdout_share(self) -> float:
        """The share of rows that a hash holds out; 0 where values are listed."""
        return self.holdout if isinstance(self.holdout, float) else 0.0

    @model_validator(mode="after")
    def _values_belong_to_a_column(self) -> Self:
        for side, values in self.folds.items():
            if self.column is None:
                raise fail(
                    "column",
                    "these are values of a column, and none is named",
                    key=side,
                    value=values,
                    fix="add partition.column: the source column that holds them"
                    + ("" if side == "train" else f", or write a share: {side}: 0.3"),
                )
        if self.column is not None and "holdout" not in self.folds:
            left_out = "holdout" not in self.model_fields_set
            raise fail(
                "column",
                "with partition.column, the holdout is a list of its values",
                key="holdout",
                value="left out" if left_out else self.holdout,
                fix="holdout: [test], with the values of the test set; or leave column out",
            )
        return self

    @model_validator(mode="after")
    def _a_value_is_on_one_side(self) -> Self:
        seen: dict[str, str] = {}
        for side, values in self.folds.items():
            for place, value in enumerate(values):
                if value in seen:
                    raise fail(
                        "fold",
                        f"this value is listed in {seen[value]} already",
                        key=f"{side}.{place}",
                        value=value,
                        fix="keep one of the two",
                    )
                seen[value] = side
        return self
