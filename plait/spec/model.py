"""[model]: what is computed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from plait.spec.objective import HEADS
from plait.spec.section import Fraction, Positive, Section


class Mixture(NamedTuple):
    """A mixture of experts, with every setting settled. hidden: width inside an expert."""

    experts: int
    per_token: int
    shared: int
    hidden: int
    scores: Literal["sigmoid", "softmax"]
    balance: Literal["bias", "auxiliary", "none"]
    auxiliary: float
    bias_rate: float


class RopeScaling(Section):
    """Rotary angles that turn more slowly, so that more positions are told apart: all alike, or as Llama 3.1's, whose quick ones stay."""

    kind: Literal["linear", "llama3"] = Field(description="linear: all by `factor`; llama3: those that turn slowly, gradually")
    factor: float = Field(gt=1, description="how many times slower")
    low: float | None = Field(None, gt=0, description="llama3: angles that turn less often within `original` are slowed in full")
    high: float | None = Field(None, gt=0, description="llama3: those that turn more often stay as they are")
    original: Positive | None = Field(None, description="llama3: positions that were first trained on")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = [name for name in ("low", "high", "original") if getattr(self, name) is not None]
        if self.kind == "linear" and given:
            raise ValueError(f'{given[0]} belongs to kind = "llama3"; leave it out with "linear"')
        if self.kind == "llama3" and (self.low is None or self.high is None or self.original is None or self.high <= self.low):
            raise ValueError('kind = "llama3" needs low, high above it, and original')
        return self


class Model(Section):
    """What is computed. The decoder families differ by these settings alone; "bert" is an encoder, "t5" both."""

    family: str = Field("llama", description='"gpt2", "llama", "moe", "bert", "t5", or "package.module:Class", your own model')
    layers: Positive = Field(4, description="blocks; of t5 those of the encoder")
    decoder_layers: Positive | None = Field(None, description="t5: blocks of the decoder; `layers` when left out")
    width: Positive = Field(192, description="of the residual stream")
    heads: Positive = Field(6, description="of attention; divides width")
    kv_heads: Positive | None = Field(None, description="key and value heads; `heads` when left out")
    head_size: Positive | None = Field(None, description="width of one head; width / heads when left out")
    qkv_bias: bool | None = Field(None, description="queries, keys and values have a bias; gpt2 and bert yes, llama no when left out")
    qk_norm: bool = Field(False, description="queries and keys are normed, head by head, before they are rotated")
    hidden: Positive | None = Field(None, description="width inside the MLP; the family's usual when left out")
    dropout: Fraction = Field(0.0, description="after the embedding, in attention and after each half of a block")
    tied: bool | None = Field(None, description="the head reuses the embedding; gpt2, bert and t5 yes, llama no when left out")
    norm_eps: float = Field(1e-5, gt=0, description="added to the variance in norms")
    rope_theta: float = Field(10_000.0, gt=0, description="llama: the slowest rotary angle turns once in 2 pi times so many positions")
    rope_scaling: RopeScaling | None = Field(None, description="how angles are stretched for longer texts than were first trained on")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activation checkpointing: what of a block backward computes again; selective: all but the matrix products"
    )
    recompute_layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="the layers, from 0 on, that `recompute` is for; all when left out"
    )
    pooling: Literal["first", "mean"] | None = Field(
        None,
        description="bert that tells something of a sample: from its first token, by BERT's pooler, or from the mean; first when left out",
    )
    gated: bool | None = Field(None, description="t5: the MLP is gated GELU, as T5 1.1's, and not ReLU; no when left out")
    buckets: Annotated[int, Field(ge=4, multiple_of=4)] | None = Field(None, description="t5: kinds of distances; 32 when left out")
    furthest: Positive | None = Field(None, description="t5: the distance from which on all are of one kind; 128 when left out")
    vocabulary: Positive | None = Field(
        None, description="rows of the embedding and of the head; as many as the tokenizer has tokens when left out"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="passed to your own model as they are")
    experts: Positive | None = Field(None, description="moe: experts in a layer; 8 when left out")
    experts_per_token: Positive | None = Field(None, description="moe: how many of them compute a token; 2 when left out")
    shared_experts: Annotated[int, Field(ge=0)] | None = Field(None, description="moe: experts beside them that compute every token")
    expert_hidden: Positive | None = Field(
        None, description="moe: width inside an expert; when left out, those of a token are together as wide as the plain MLP"
    )
    dense_layers: Annotated[int, Field(ge=0)] | None = Field(None, description="moe: the first layers, which keep a plain MLP")
    scores: Literal["sigmoid", "softmax"] | None = Field(
        None, description="moe: what a router makes of its outputs before it chooses; sigmoid when left out"
    )
    balance: Literal["bias", "auxiliary", "none"] | None = Field(
        None, description="moe: what keeps experts equally busy: a bias moved after each step, or a second loss; bias when left out"
    )
    auxiliary: Annotated[float, Field(ge=0)] | None = Field(
        None, description="moe: weight of the balancing loss of each sequence; 0.01 for auxiliary and 0.0001 for bias when left out"
    )
    bias_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description='moe, balance = "bias": what a step moves a bias by; 0.001 when left out'
    )

    FAMILIES: ClassVar[tuple[str, ...]] = ("gpt2", "llama", "moe", "bert", "t5")
    OF_SIDES: ClassVar[tuple[str, ...]] = ("decoder_layers", "gated", "buckets", "furthest")
    OF_MIXTURES: ClassVar[tuple[str, ...]] = (
        "experts",
        "experts_per_token",
        "shared_experts",
        "expert_hidden",
        "dense_layers",
        "scores",
        "balance",
        "auxiliary",
        "bias_rate",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.family not in self.FAMILIES and ":" not in self.family:
            raise ValueError(f'family = "{self.family}" is unknown; use "gpt2", "llama", "moe", "bert", "t5" or "package.module:Class"')
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.head_size is None and self.width % self.heads:
            raise ValueError(f"width = {self.width} is not divisible by heads = {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads = {self.heads} is not divisible by kv_heads = {self.kv_heads}")
        if self.rotates and self.family in self.FAMILIES and self.head_width % 2:
            which = "head_size" if self.head_size else "width / heads"
            raise ValueError(f"rotary positions need an even head width; {which} = {self.head_width}")
        return self

    @model_validator(mode="after")
    def _recomputed(self) -> Self:
        beyond = [layer for layer in self.recompute_layers or () if layer >= self.all_layers]
        if beyond:
            raise ValueError(
                f"recompute_layers names layer {beyond[0]}, and layers = {self.all_layers} are numbered from 0 to {self.all_layers - 1}"
            )
        return self

    def recomputes(self, layer: int) -> Literal["none", "selective", "full"]:
        """What backward computes again of one layer."""
        return self.recompute if self.recompute_layers is None or layer in self.recompute_layers else "none"

    @model_validator(mode="after")
    def _sided(self) -> Self:
        given = [name for name in self.OF_SIDES if getattr(self, name) is not None]
        if self.rope_scaling is not None and not self.rotates:
            raise ValueError(f'rope_scaling is for rotary positions, and family = "{self.family}" has none; leave it out')
        if self.family in self.FAMILIES and self.family != "t5" and given:
            raise ValueError(f'{given[0]} belongs to family = "t5"; leave it out with "{self.family}"')
        unfit = {"kv_heads": self.key_value_heads != self.heads, "qkv_bias": self.qkv_bias, "qk_norm": self.qk_norm}
        if self.family == "t5" and any(unfit.values()):
            raise ValueError(f'family = "t5" has no {next(name for name, given in unfit.items() if given)}; leave it out')
        return self

    @model_validator(mode="after")
    def _mixed(self) -> Self:
        given = [name for name in self.OF_MIXTURES if getattr(self, name) is not None]
        if self.family in self.FAMILIES and self.family != "moe" and given:
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
    def layer_norms(self) -> bool:
        """LayerNorm, biases and GELU, as GPT-2 and BERT have them, where others have RMSNorm, no biases and SwiGLU."""
        return self.family in ("gpt2", "bert")

    @property
    def rotates(self) -> bool:
        """Positions are angles in queries and keys, not vectors of their own."""
        return not self.layer_norms and self.family != "t5"

    @property
    def any_length(self) -> bool:
        """Positions are no parameters, so that fewer than were trained on may be used."""
        return not self.layer_norms

    def rows(self, tokens: int) -> int:
        """Of the embedding, with a tokenizer of so many tokens."""
        return self.vocabulary or tokens

    @property
    def causal(self) -> bool:
        """Whether all positions see those before them alone."""
        return self.family not in ("bert", "t5")

    @property
    def objectives(self) -> tuple[str, ...]:
        """The kinds of objectives that a family can learn by, its usual one first."""
        return {"bert": ("masked", *HEADS), "t5": ("span", "translate")}.get(self.family, ("causal", "translate"))

    @property
    def all_layers(self) -> int:
        """Blocks, of both sides where there are two."""
        return self.layers + (self.decoder_layers or self.layers if self.family == "t5" else 0)

    @property
    def distance_buckets(self) -> int:
        return self.buckets or 32

    @property
    def furthest_distance(self) -> int:
        return self.furthest or 128

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.head_size or self.width // self.heads

    @property
    def biased_qkv(self) -> bool:
        return self.layer_norms if self.qkv_bias is None else self.qkv_bias

    @property
    def hidden_width(self) -> int:
        """Inside the MLP: 4 x width for gpt2, bert and t5; for llama two thirds of that, the next multiple of 64."""
        usual = 4 * self.width if self.layer_norms or self.family == "t5" else -(-8 * self.width // (3 * 64)) * 64
        return self.hidden or usual

    @property
    def tied_head(self) -> bool:
        return (self.layer_norms or self.family == "t5") if self.tied is None else self.tied

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
            scores=self.scores or "sigmoid",
            balance=balance,
            auxiliary=usual if self.auxiliary is None else self.auxiliary,
            bias_rate=self.bias_rate or 1e-3,
        )

    def mixes(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in place of its MLP."""
        return self.family == "moe" and layer >= (self.dense_layers or 0)
