"""The run file's sections: names, types, defaults, and what excludes what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator

from plait.spec.duration import Duration
from plait.spec.section import Fraction, Positive, Section
from plait.spec.sync import Agreement, Sync

Device = Literal["auto", "cpu", "cuda"]


def _steps(text: str) -> Duration:
    return Duration(text)


class Mixture(NamedTuple):
    """A mixture of experts, with every setting settled. hidden: width inside an expert."""

    experts: int
    per_token: int
    shared: int
    hidden: int
    balance: Literal["bias", "auxiliary", "none"]
    auxiliary: float
    bias_rate: float


class Model(Section):
    """What is computed. The decoder families differ by these settings alone."""

    family: str = Field("llama", description='"gpt2", "llama", "moe", or "package.module:Class", your own model')
    layers: Positive = Field(4, description="blocks")
    width: Positive = Field(192, description="of the residual stream")
    heads: Positive = Field(6, description="of attention; divides width")
    kv_heads: Positive | None = Field(None, description="key and value heads; `heads` when left out")
    hidden: Positive | None = Field(None, description="width inside the MLP; the family's usual when left out")
    dropout: Fraction = Field(0.0, description="after the embedding, in attention and after each half of a block")
    tied: bool | None = Field(None, description="the head reuses the embedding; gpt2 yes, llama no when left out")
    norm_eps: float = Field(1e-5, gt=0, description="added to the variance in norms")
    rope_theta: float = Field(10_000.0, gt=0, description="llama: the slowest rotary angle turns once in 2 pi times so many positions")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activation checkpointing: what of a block backward computes again; selective: all but the matrix products"
    )
    recompute_layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="the layers, from 0 on, that `recompute` is for; all when left out"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="passed to your own model as they are")
    experts: Positive | None = Field(None, description="moe: experts in a layer; 8 when left out")
    experts_per_token: Positive | None = Field(None, description="moe: how many of them compute a token; 2 when left out")
    shared_experts: Annotated[int, Field(ge=0)] | None = Field(None, description="moe: experts beside them that compute every token")
    expert_hidden: Positive | None = Field(
        None, description="moe: width inside an expert; when left out, those of a token are together as wide as the plain MLP"
    )
    dense_layers: Annotated[int, Field(ge=0)] | None = Field(None, description="moe: the first layers, which keep a plain MLP")
    balance: Literal["bias", "auxiliary", "none"] | None = Field(
        None, description="moe: what keeps experts equally busy: a bias moved after each step, or a second loss; bias when left out"
    )
    auxiliary: Annotated[float, Field(ge=0)] | None = Field(
        None, description="moe: weight of the balancing loss of each sequence; 0.01 for auxiliary and 0.0001 for bias when left out"
    )
    bias_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description='moe, balance = "bias": what a step moves a bias by; 0.001 when left out'
    )

    FAMILIES: ClassVar[tuple[str, ...]] = ("gpt2", "llama", "moe")
    LATER: ClassVar[tuple[str, ...]] = ("bert", "t5")
    OF_MIXTURES: ClassVar[tuple[str, ...]] = (
        "experts",
        "experts_per_token",
        "shared_experts",
        "expert_hidden",
        "dense_layers",
        "balance",
        "auxiliary",
        "bias_rate",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.family in self.LATER:
            raise ValueError(f'family = "{self.family}" is not built yet; use "gpt2", "llama" or "moe"')
        if self.family not in self.FAMILIES and ":" not in self.family:
            raise ValueError(f'family = "{self.family}" is unknown; use "gpt2", "llama", "moe" or "package.module:Class"')
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not divisible by heads = {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads = {self.heads} is not divisible by kv_heads = {self.kv_heads}")
        if self.family in ("llama", "moe") and (self.width // self.heads) % 2:
            raise ValueError(f"rotary positions need an even head width; width / heads = {self.width // self.heads}")
        return self

    @model_validator(mode="after")
    def _recomputed(self) -> Self:
        beyond = [layer for layer in self.recompute_layers or () if layer >= self.layers]
        if beyond:
            raise ValueError(
                f"recompute_layers names layer {beyond[0]}, and layers = {self.layers} are numbered from 0 to {self.layers - 1}"
            )
        return self

    def recomputes(self, layer: int) -> Literal["none", "selective", "full"]:
        """What backward computes again of one layer."""
        return self.recompute if self.recompute_layers is None or layer in self.recompute_layers else "none"

    @model_validator(mode="after")
    def _mixed(self) -> Self:
        given = [name for name in self.OF_MIXTURES if getattr(self, name) is not None]
        if self.family in ("gpt2", "llama") and given:
            raise ValueError(f'{given[0]} belongs to family = "moe"; leave it out with "{self.family}"')
        mixture = self.mixture
        if mixture.per_token > mixture.experts:
            raise ValueError(f"experts_per_token = {mixture.per_token} is more than experts = {mixture.experts}")
        if (self.dense_layers or 0) >= self.layers and self.family == "moe":
            raise ValueError(f'dense_layers = {self.dense_layers} leaves none of layers = {self.layers} a mixture; use family = "llama"')
        if self.bias_rate is not None and mixture.balance != "bias":
            raise ValueError(f'bias_rate belongs to balance = "bias"; leave it out with "{mixture.balance}"')
        if self.auxiliary is not None and mixture.balance == "none":
            raise ValueError('auxiliary is the weight of a loss that balance = "none" leaves out; leave it out too')
        if self.auxiliary == 0 and mixture.balance == "auxiliary":
            raise ValueError('balance = "auxiliary" needs auxiliary above 0; use balance = "none"')
        return self

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def hidden_width(self) -> int:
        """Inside the MLP: 4 x width for gpt2; for llama two thirds of that, the next multiple of 64."""
        usual = 4 * self.width if self.family == "gpt2" else -(-8 * self.width // (3 * 64)) * 64
        return self.hidden or usual

    @property
    def tied_head(self) -> bool:
        return self.family == "gpt2" if self.tied is None else self.tied

    @property
    def mixture(self) -> Mixture:
        """The mixture of a layer of family "moe"; what is left out takes its usual value."""
        per_token, shared = self.experts_per_token or 2, self.shared_experts or 0
        balance = self.balance or "bias"
        usual = {"bias": 1e-4, "auxiliary": 1e-2, "none": 0.0}[balance]
        return Mixture(
            experts=self.experts or 8,
            per_token=per_token,
            shared=shared,
            hidden=self.expert_hidden or -(-self.hidden_width // (64 * (per_token + shared))) * 64,
            balance=balance,
            auxiliary=usual if self.auxiliary is None else self.auxiliary,
            bias_rate=self.bias_rate or 1e-3,
        )

    def mixes(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in place of its MLP."""
        return self.family == "moe" and layer >= (self.dense_layers or 0)


class Source(Section):
    """One source of a mixture."""

    path: str = Field(description="a path or a glob")
    name: str | None = Field(None, description="what it is called; its path when left out")
    weight: float = Field(1.0, gt=0, description="its share of the training samples, relative to the others'")
    format: Literal["text", "jsonl", "parquet"] | None = Field(None, description="told by the file's name when left out")


class Tokenizer(Section):
    """Either trained here or read from a file."""

    train: Annotated[int, Field(ge=257)] | None = Field(
        None, description="entries of a byte-level BPE: 256 bytes, one special token, merges"
    )
    file: str | None = Field(None, description="tokenizer.json, a SentencePiece .model or a .tiktoken file")
    pattern: str | None = Field(None, description="how a .tiktoken file cuts text into words; GPT-4's when left out")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.train is None) == (self.file is None):
            raise ValueError('write { train = 2048 }, a byte-level BPE of that size, or { file = "tokenizer.json" }')
        return self


class Splits(Section):
    """Shares of the documents, told by a hash of their content."""

    validation: Fraction = Field(0.05, description="share of the documents")
    test: Fraction = Field(0.05, description="share of the documents")

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test = {self.validation + self.test:g} leaves nothing to train on")
        return self


class Data(Section):
    """What it is computed on."""

    corpus: list[str | Source] = Field(min_length=1, description="paths or globs of text, JSONL or Parquet; a weighted mixture of sources")
    tokenizer: Tokenizer = Field(Tokenizer(train=2048, file=None, pattern=None), description="how text becomes tokens")
    sequence: Positive = Field(128, description="tokens a sequence")
    prepared: str = Field("runs/prepared", description="the folder where token files are kept, and found again by what they were made of")
    field: str = Field("text", description="where JSONL and Parquet rows keep the text")
    separator: str = Field("\f", min_length=1, description="ends a document in a plain text file; a form feed when left out")
    split: Splits = Field(Splits(), description="what is held back")
    document_mask: bool = Field(False, description="attention does not cross the border of two documents")
    workers: Positive | None = Field(None, description="processes that prepare; the cores when left out")


class Optimizer(Section):
    name: str = Field("adamw", description='"adamw", "adam", "sgd", "muon", or "package.module:Class"')
    lr: float = Field(1e-3, gt=0, description="the highest rate")
    betas: Annotated[tuple[float, float], Field(strict=False)] = Field((0.9, 0.95), description="adamw, adam and muon's AdamW half")
    eps: float = Field(1e-8, gt=0, description="adamw, adam and muon's AdamW half")
    momentum: Fraction | None = Field(None, description="sgd and muon; 0.9 for sgd and 0.95 for muon when left out")
    nesterov: bool | None = Field(None, description="sgd and muon; no for sgd and yes for muon when left out")
    weight_decay: float = Field(0.1, ge=0, description="on matrices; norms, biases and positions are spared")
    settings: dict[str, Any] = Field(default_factory=dict, description="passed to your own optimizer as they are")

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
    warmup: Duration = Field(_steps("0 steps"), description="length of the straight line up to lr")
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
    evaluate_every: Duration | None = Field(None, description="measure the validation split so often, and at the end; never when left out")
    evaluate_sequences: Positive | None = Field(None, description="validation sequences per evaluation; all when left out")
    log_every: Duration = Field(_steps("10 steps"), description="a line of the log")
    compile: bool = Field(False, description="torch.compile, block by block")
    nonfinite_limit: Positive = Field(5, description="steps in a row with a loss or gradient that is not finite before the run rolls back")

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


class Layout(Section):
    """Replicas, each spread over pipeline x shard x context x tensor x expert."""

    replicas: Positive = Field(1, description="whole copies of the model that share each global batch")
    pipeline: Positive = Field(1, description="stages of consecutive layers")
    shard: Positive = Field(1, description="ranks that share parameters, gradients and optimizer state, and cut micro-batches by sequences")
    context: Positive = Field(1, description="ranks that cut each sequence by positions")
    tensor: Positive = Field(1, description="ranks that cut each matrix")
    expert: Positive = Field(1, description="ranks that share the experts of a mixture, and cut micro-batches by sequences")
    zero: Literal[1, 2, 3] = Field(
        3, description="shard: what is kept in shares alone; 1: optimizer state, 2: gradients too, 3: parameters too"
    )
    offload: bool = Field(False, description="shard: parameters, gradients and optimizer state rest in the host's memory")
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble"] = Field("1f1b", description="pipeline: the order of micro-batches")
    stages: list[Positive] | None = Field(None, description="pipeline: layers of each stage, in order; by cost when left out")
    context_by: Literal["ring", "ulysses"] = Field(
        "ring", description="context: keys and values go around, or heads are exchanged for positions"
    )

    auto: bool = Field(False, description='chosen when the run starts: what fits in memory and sends least; layout = "auto" says the same')

    INNER: ClassVar[tuple[str, ...]] = ("pipeline", "shard", "context", "tensor", "expert")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"auto": True} if given == "auto" else given

    @model_validator(mode="after")
    def _chosen_later(self) -> Self:
        if self.auto and self.workers > 1:
            raise ValueError("auto = true chooses the sizes of all axes; leave them out, or auto")
        return self

    @model_validator(mode="after")
    def _kept_where_needed(self) -> Self:
        if self.offload and (self.shard == 1 or self.zero == 1):
            raise ValueError("offload = true needs shard above 1 and zero = 2 or 3: what rests on the host is gathered from there")
        if self.schedule == "zero_bubble" and min(self.pipeline, self.shard) > 1 and self.zero == 3:
            raise ValueError(
                'zero = 3 frees parameters behind forward, and schedule = "zero_bubble" finds its halves of backward by them; '
                'use zero = 2, or schedule = "interleaved"'
            )
        return self

    @property
    def ranks(self) -> int:
        """Processes of one replica."""
        return math.prod(getattr(self, axis) for axis in self.INNER)

    @property
    def workers(self) -> int:
        """Processes of all replicas."""
        return self.replicas * self.ranks


class Balance(Section):
    policy: Literal["static", "dynamic", "auto"] = Field("static", description="built: static")
    capacity: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="each replica's share, relative to the others'; zero included"
    )

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.policy != "static":
            raise ValueError(f'policy = "{self.policy}" is not built yet; use "static"')
        if self.capacity is not None and sum(self.capacity) <= 0:
            raise ValueError("capacity: at least one replica must have a share")
        return self


class Elastic(Section):
    """What becomes of a run whose workers die or come."""

    replicas: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[fewest, most]: below the fewest the run waits; it grows to the most; [1, layout.replicas] when left out"
    )
    hang_after: float = Field(
        120.0, gt=0, description="seconds without progress after which a worker is named and replaced; ten times as many for its first unit"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.replicas is not None and self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas = {self.replicas} is [fewest, most], and the first is more than the second")
        return self


class Checkpoint(Section):
    every: Duration | None = Field(None, description="a last one is always saved")
    keep: Positive = Field(2, description="the newest that stay")
    copy_to: str | None = Field(None, alias="copy", description="not built yet")

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.copy_to is not None:
            raise ValueError("copy is not built yet; leave it out")
        return self


class Alerts(Section):
    command: str | None = Field(None, description="not built yet")
    webhook: str | None = Field(None, description="not built yet")

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.command is not None or self.webhook is not None:
            raise ValueError("command and webhook are not built yet; leave them out")
        return self


class Watch(Section):
    """Who is told of the run's events, besides events.jsonl and the log."""

    tensorboard: bool = Field(True, description="files for it in OUT/tensorboard")
    wandb: str | None = Field(None, description="a project of Weights & Biases")
    mlflow: str | None = Field(None, description="an experiment of MLflow")
    listeners: list[str] = Field(default_factory=list, description='"package.module:Class", your own')


class Cluster(Section):
    launcher: Literal["local", "environment", "ray"] = Field("local", description='"environment" is taken under torchrun, srun and mpirun')
    device: Device = Field("auto", description="auto takes a GPU where there is one")
    threads: Positive | None = Field(None, description="threads a worker; the cores shared out when left out")

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.launcher == "ray":
            raise ValueError('launcher = "ray" is not built yet; use "local", or start plait under torchrun, srun or mpirun')
        return self


class Run(Section):
    """One training. The sections are the tables of the run file."""

    model: Model = Model()
    data: Data
    train: Train
    layout: Layout = Layout()
    sync: Sync = Sync()
    balance: Balance = Balance()
    elastic: Elastic = Elastic()
    checkpoint: Checkpoint = Checkpoint()
    alerts: Alerts = Alerts()
    watch: Watch = Watch()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        capacity = self.balance.capacity
        if capacity is not None and len(capacity) != self.layout.replicas:
            raise ValueError(f"balance.capacity names {len(capacity)} replicas and layout.replicas = {self.layout.replicas}")
        if not self.layout.auto and not self.fewest_replicas <= self.layout.replicas <= self.most_replicas:
            raise ValueError(
                f"elastic.replicas = {self.elastic.replicas} is [fewest, most], and layout.replicas = {self.layout.replicas}, which a run "
                "begins with, is not between them"
            )
        if self.layout.auto and (capacity is not None or self.sync.strategy != "allreduce"):
            raise ValueError('layout.auto is for sync.strategy = "allreduce" without balance.capacity so far; write the layout')
        if self.layout.pipeline > 1 and self.train.micro_batch == "auto":
            raise ValueError('train.micro_batch = "auto" measures whole models; write a number with layout.pipeline')
        if self.layout.pipeline > 1 and self.layout.schedule == "zero_bubble" and (whole := self._backward_in_one_piece()):
            raise ValueError(
                f'layout.schedule = "zero_bubble" computes gradients of weights after those of inputs, and {whole} has both come at once; '
                'use layout.schedule = "interleaved"'
            )
        return self

    @model_validator(mode="after")
    def _agreeable(self) -> Self:
        for agreement in self.sync.agreements:
            self._check_agreement(agreement)
        if self.sync.serves and self.train.micro_batch == "auto":
            raise ValueError(
                'train.micro_batch = "auto" is for shares of a batch, and sync.strategy = "server" leases micro-batches; write a number'
            )
        return self

    def _check_agreement(self, agreement: Agreement) -> None:
        replicas, optimizer = self.layout.replicas, self.train.optimizer.name
        if self.model.family == "moe" and self.model.mixture.balance == "bias" and agreement.mode != "allreduce":
            raise ValueError(
                f'model.balance = "bias" follows the load of a whole global batch, which "{agreement.mode}" does not gather; '
                'use model.balance = "auxiliary"'
            )
        if agreement.mode == "bounded" and agreement.staleness is not None and agreement.staleness < replicas - 1:
            raise ValueError(
                f"sync.staleness = {agreement.staleness} lets {agreement.staleness + 1} replicas work at once, and "
                f"layout.replicas = {replicas}; use staleness = {replicas - 1} or more"
            )
        if agreement.strategy == "server" and optimizer == "muon" and self.layout.ranks > 1:
            raise ValueError(
                'train.optimizer.name = "muon" needs whole matrices, and sync.strategy = "server" holds what each rank of a replica does; '
                'use "adamw", or replicas of one rank'
            )
        if agreement.strategy in ("local_sgd", "diloco") and self.balance.capacity is not None and 0 in self.balance.capacity:
            raise ValueError(
                f'balance.capacity gives a replica nothing, and sync.strategy = "{agreement.strategy}" has each take steps of its own'
            )

    def _backward_in_one_piece(self) -> str | None:
        """The setting that makes it so: a program, or a block that is computed again, and would be for each of its weights."""
        if self.train.compile:
            return "train.compile = true"
        return None if self.model.recompute == "none" else f'model.recompute = "{self.model.recompute}"'

    @property
    def fewest_replicas(self) -> int:
        """Replicas without which the run waits."""
        return self.elastic.replicas[0] if self.elastic.replicas else 1

    @property
    def most_replicas(self) -> int:
        """Replicas that the run grows to."""
        return self.elastic.replicas[1] if self.elastic.replicas else self.layout.replicas

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, as plain data that TOML and JSON can hold; unset ones are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def identity(self) -> dict[str, Any]:
        """The settings that shape the curve, dotted: a run resumes only where these are equal.

        Layout, cluster, checkpoints and what is merely watched may change between starts.
        """
        return {key: value for key, value in flatten(self.resolved()).items() if shapes_curve(key)}


_FREE = {
    "model.recompute",
    "model.recompute_layers",
    "data.prepared",
    "data.workers",
    "train.micro_batch",
    "train.evaluate_every",
    "train.evaluate_sequences",
    "train.log_every",
    "train.compile",
    "sync.bucket_mib",
    "sync.servers",
    "sync.link.latency",
    "sync.link.bandwidth",
}


def shapes_curve(setting: str) -> bool:
    """Whether a run resumes only with the same value of a dotted setting."""
    return setting.startswith(("model.", "data.", "train.", "sync.")) and setting not in _FREE


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
