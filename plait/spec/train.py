"""[train]: how it is learned."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from plait.spec.duration import Duration
from plait.spec.section import Fraction, Positive, Section


class Optimizer(Section):
    name: str = Field("adamw", description='"adamw", "adam", "sgd", "muon", or "package.module:Class"')
    lr: float = Field(1e-3, gt=0, description="the highest rate")
    betas: Annotated[tuple[float, float], Field(strict=False)] = Field((0.9, 0.95), description="adamw, adam and muon's AdamW half")
    eps: float = Field(1e-8, gt=0, description="adamw, adam and muon's AdamW half")
    momentum: Fraction | None = Field(None, description="sgd and muon; 0.9 for sgd and 0.95 for muon when left out")
    nesterov: bool | None = Field(None, description="sgd and muon; no for sgd and yes for muon when left out")
    weight_decay: float = Field(0.1, ge=0, description="on matrices; norms, biases and positions are spared")
    state: Literal["int8"] | None = Field(
        None, description="adamw and adam: int8 keeps the moments of matrices in eight bits a value, rounded by blocks of a row"
    )
    block: Positive | None = Field(None, description="int8: values of a row that share a scale; 64 when left out")
    settings: dict[str, Any] = Field(default_factory=dict, description="passed to your own optimizer as they are")

    @model_validator(mode="after")
    def _kept(self) -> Self:
        if self.state == "int8" and self.name not in ("adamw", "adam"):
            raise ValueError(f'state = "int8" is for name = "adamw" and "adam"; leave it out with "{self.name}"')
        if self.block is not None and self.state != "int8":
            raise ValueError('block belongs to state = "int8"; leave it out')
        return self

    @property
    def block_size(self) -> int:
        return self.block or 64

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in ("adamw", "adam", "sgd", "muon") and ":" not in self.name:
            raise ValueError(f'name = "{self.name}" is unknown; use "adamw", "adam", "sgd", "muon" or "package.module:Class"')
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)} must lie in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum above 0")
        return self


class Schedule(Section):
    name: Literal["constant", "cosine", "linear", "wsd"] = Field("cosine", description="how the rate falls")
    warmup: Duration = Field(Duration("0 steps"), description="length of the straight line up to lr")
    floor: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="the last rate, as a share of lr")
    decay: Duration | None = Field(None, description="wsd: length of the fall at the end; a fifth of the run when left out")


class BatchStage(Section):
    batch: Positive = Field(description="sequences a global batch")
    until: Duration | None = Field(None, description="left out in the last stage only")


class Train(Section):
    """How it is learned: everything here but micro_batch, compile and what is merely watched shapes the curve."""

    duration: Duration = Field(description="of the whole run")
    batch: Positive | list[BatchStage] = Field(32, description="sequences a global batch, however many replicas share it; or stages of it")
    micro_batch: Positive | Literal["auto"] = Field(4, description="most sequences computed at once")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initial values, order and dropout")
    precision: Literal["fp32", "bf16", "fp64"] = Field("fp32", description="bf16 computes in bf16 on fp32 parameters; fp64 is for proofs")
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="largest global norm of the gradient")
    optimizer: Optimizer = Field(Optimizer(), description="the step")
    schedule: Schedule = Field(Schedule(), description="of the learning rate")
    loss: str = Field("cross_entropy", description='"cross_entropy" or "package.module:function", a sum over tokens')
    label_smoothing: Fraction = Field(0.0, description="share of each target that all tokens get alike while learning")
    evaluate_every: Duration | None = Field(None, description="measure the validation split so often, and at the end; never when left out")
    evaluate_sequences: Positive | None = Field(None, description="validation sequences per evaluation; all when left out")
    evaluate_translations: Positive | None = Field(
        None, description="translate: validation pairs that each evaluation translates too, greedily, for BLEU and chrF; none when left out"
    )
    log_every: Duration = Field(Duration("10 steps"), description="a line of the log")
    compile: bool = Field(False, description="torch.compile, block by block")
    nonfinite_limit: Positive = Field(5, description="steps in a row with a loss or gradient that is not finite before the run rolls back")

    spike: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="robust deviations above the running median at which a loss is a spike: the run returns to the last checkpoint and "
        "leaves its data out; never when left out",
    )
    spike_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="the same of the norm of the gradient")
    spike_skips: Positive = Field(2, description="global batches that are left out for a spike: its own, and those before it")
    spike_limit: Positive = Field(3, description="spikes for which a run returns to the same checkpoint; one more ends it")

    @model_validator(mode="after")
    def _smoothed(self) -> Self:
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(f'label_smoothing belongs to loss = "cross_entropy"; leave it out with "{self.loss}"')
        return self

    @model_validator(mode="after")
    def _batches(self) -> Self:
        if isinstance(self.batch, list):
            if not self.batch or any(stage.until is None for stage in self.batch[:-1]) or self.batch[-1].until is not None:
                raise ValueError("batch: each stage but the last needs `until`, and the last has none")
            if any(stage.until is not None and stage.until.unit == "epochs" for stage in self.batch):
                raise ValueError("batch: a stage lasts `until` a number of steps or tokens, not epochs")
        if self.micro_batch != "auto" and self.micro_batch > self.largest_batch:
            raise ValueError(f"micro_batch = {self.micro_batch} is larger than batch = {self.largest_batch}")
        return self

    @property
    def largest_batch(self) -> int:
        return self.batch if isinstance(self.batch, int) else max(stage.batch for stage in self.batch)
