"""What every section of the configuration is made of: frozen models, ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers


def single_precision(value: float) -> float:
    """Return ``value``, which must be 0 or a normal number in 32 bits.

    Raises:
      ValueError: agents would compute with 0 or infinity in its place.
    """
    if value != 0 and not _SMALLEST <= abs(value) <= _LARGEST:
        raise ValueError("must be a number that 32 bits hold, from 1.2e-38 to 3.4e38")
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0), AfterValidator(single_precision)]
Positive = Annotated[float, Field(gt=0), AfterValidator(single_precision)]
EnvSteps = Annotated[int, Field(gt=0, lt=2**31)]
"""A budget of environment steps, which agents count in 32 bits."""


class Model(BaseModel):
    """A frozen, hashable section that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
