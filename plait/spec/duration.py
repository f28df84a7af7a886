"""Lengths of training."""

from __future__ import annotations

from typing import Literal, Self

import pydantic
from pydantic import ConfigDict, model_validator

Unit = Literal["steps", "tokens", "epochs"]
_MULTIPLIERS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "t": 1_000_000_000_000}


class Duration(pydantic.RootModel[str]):
    """A length of training: "400 steps", "2.5M tokens", "3 epochs"."""

    model_config = ConfigDict(frozen=True, strict=True)

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self._parse()
        return self

    @property
    def amount(self) -> float:
        return self._parse()[0]

    @property
    def unit(self) -> Unit:
        return self._parse()[1]

    def __str__(self) -> str:
        return self.root

    def _parse(self) -> tuple[float, Unit]:
        number, _, unit = self.root.strip().partition(" ")
        unit = unit.strip().removesuffix("s") + "s"
        scale = number[-1:].lower() if number[-1:].isalpha() else ""
        try:
            amount = float(number.removesuffix(number[-1:] if scale else "").replace("_", "")) * _MULTIPLIERS[scale]
        except (ValueError, KeyError):
            amount = -1.0
        if amount < 0 or unit not in ("steps", "tokens", "epochs"):
            raise ValueError(f'{self.root!r} is no duration; write a number and a unit: "400 steps", "2M tokens" or "3 epochs"')
        if unit == "steps" and amount != int(amount):
            raise ValueError(f"{self.root!r}: steps are whole numbers")
        return amount, unit  # type: ignore[return-value]
