"""What every part of the spec is made of: strict models, common types, located failures."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _number(value: object) -> object:
    # YAML writes 1 where 1.0 is meant; that is the one conversion allowed.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_number)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def fail(kind: str, message: str, **context: Any) -> PydanticCustomError:
    """A validation error whose ``key`` context may point below the model that raises it."""
    return PydanticCustomError(kind, message, context)
