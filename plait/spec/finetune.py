"""[finetune]: a model that is there is trained further, all of it or a part."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from plait.spec.section import Fraction, Positive, Section

NEW_HEADS = ("pooler.*", "task_head.*")
"""Parameters of an encoder's head for a task: where they are new, adapters alone would leave them as chance has drawn them."""
OF_HEADS = (*NEW_HEADS, "transform.*", "norm.*", "head.*")
"""Parameters that belong to what an encoder tells, not to how it reads."""
_LAYER = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


class Lora(Section):
    """Two narrow matrices beside each chosen one, y = W x + alpha / rank B A x; they alone are trained (Hu et al. 2021)."""

    rank: Positive = Field(8, description="rows of A, columns of B")
    alpha: float = Field(16.0, gt=0, description="what B A x is scaled by, times the rank")
    dropout: Fraction = Field(0.0, description="of what A reads")
    targets: list[str] = Field(["blocks.*"], min_length=1, description="patterns of the paths of linear layers")


class Finetune(Section):
    """Train a model further that is there; what of [model] is left out is the base's."""

    model_config = ConfigDict(populate_by_name=True)

    base: str = Field(alias="from", min_length=1, description="a run's folder, whose newest checkpoint is taken, or one of its checkpoints")
    checksum: str | None = Field(None, description="of the base; plait writes it when the run starts")
    lora: Lora | None = Field(None, description="adapters are trained in place of the model")
    frozen: list[str] = Field([], description="patterns of parameters that stay as they are")
    trained: list[str] = Field([], description="lora: patterns of parameters that are trained beside the adapters")
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="factors of the learning rate by pattern of a parameter's path; the first that fits counts"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor of the learning rate for each layer further from the head")

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if self.trained and self.lora is None:
            raise ValueError("trained names what is trained beside adapters; without lora all is, but for what `frozen` names")
        return self

    def trains(self, path: str) -> bool:
        """Whether the parameter of this path is trained."""
        if any(fnmatchcase(path, pattern) for pattern in self.frozen):
            return False
        return self.lora is None or ".lora." in path or any(fnmatchcase(path, pattern) for pattern in (*self.trained, *NEW_HEADS))

    def misses(self, matrices: Collection[str], paths: Collection[str]) -> str | None:
        """Why a pattern fits nothing in a model with parameters of these paths, of which some are matrices; None where each fits."""
        layers = [path.removesuffix(".weight") for path in matrices if path.endswith(".weight")]
        for pattern in () if self.lora is None else self.lora.targets:
            if not any(fnmatchcase(path, pattern) for path in layers):
                return f'finetune.lora.targets: "{pattern}" fits no linear layer; there are {some_paths(layers)}'
        for setting, patterns in (("frozen", self.frozen), ("trained", self.trained), ("rates", list(self.rates))):
            for pattern in patterns:
                if ".lora." not in pattern and not any(fnmatchcase(path, pattern) for path in paths):
                    return f'finetune.{setting}: "{pattern}" fits no parameter; there are {some_paths(paths)}'
        if self.lora is None and not any(map(self.trains, paths)):
            return "finetune.frozen: leaves nothing to train"
        return None

    def rate(self, path: str, layers: int) -> float:
        """The factor of the learning rate for the parameter of this path, in a model of so many layers."""
        factor = next((factor for pattern, factor in self.rates.items() if fnmatchcase(path, pattern)), 1.0)
        return factor * float(self.layer_decay ** _below_the_head(path, layers))


def some_paths(paths: Iterable[str]) -> str:
    """A few, with the numbers of layers left open."""
    patterns = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", path) for path in paths))
    return ", ".join(patterns[:12]) + (f" and {len(patterns) - 12} more" if len(patterns) > 12 else "")


def _below_the_head(path: str, layers: int) -> int:
    """0 for the head and the norm before it; 1 for the last block; one more than there are blocks for what comes before the first."""
    if found := _LAYER.search(path):
        return layers - int(found[1])
    return layers + 1 if path.split(".")[0] in ("embed", "positions") else 0
