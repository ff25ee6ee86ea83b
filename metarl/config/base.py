"""What every section of the configuration is made of: frozen models, ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
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
