"""The encoder-decoder, T5's family: a source is read as a whole, a target is written behind it token by token.

    source ─ embed ─ source blocks ─ norm ─┬───────────┬──── ...          places by relative position alone: a learned number for each
    target ─ embed ─────────────────── target block ─ target block ─ ...  distance and head, added to scores, one table a side

A sample is one row, the source's tokens and behind them the target's, and so is the residual stream: a source block computes the first
part and hands the second on, a target block the other way round. So stages of a pipeline pass one tensor on, whichever side they
compute. The last block returns the target's part alone. Scores are not scaled; neither has a bias. Shapes: B samples, L positions of
both sides, S of the source, T of the target, D width, H heads. (Raffel et al. 2020; Shazeer 2020 for the gated form.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait import spec
from plait.model.attention import Mix
from plait.model.blocks import PLAIN, Around, Block, Embedding, Linear, RMSNorm
from plait.model.cache import Cache, LayerCache
from plait.model.cut import Cut
from plait.model.init import Constant, InitialTable, Normal, Stacked
from plait.model.layered import Layered, document_mask, sharding
from plait.model.noise import Dropout, Noise


class Sides(NamedTuple):
    """What blocks are given beside x. source: how many positions of x, here, are the source's. across: of target positions that look at
    the source."""

    source: int
    encoder: Around
    decoder: Around
    across: Around


class Bias:
    """What is added to the scores of so many queries and keys, [H, Q, K], of any share of the heads: (which, of how many)."""

    def __init__(self, weight: Tensor, buckets_QK: Tensor) -> None:
        self.weight, self._buckets_QK = weight, buckets_QK

    def of(self, share: tuple[int, int], dtype: torch.dtype) -> Tensor:
        table = self.weight[:, self._heads(share)]
        return functional.embedding(self._buckets_QK, table).permute(2, 0, 1).to(dtype)

    def part(self, queries_L: Tensor, keys_K: Tensor) -> Bias:
        return Bias(self.weight, self._buckets_QK[queries_L][:, keys_K])

    def gradient(self, share: tuple[int, int], d_hQK: Tensor) -> Tensor:
        d_weight = torch.zeros_like(self.weight, dtype=d_hQK.dtype)
        d_weight[:, self._heads(share)].index_add_(0, self._buckets_QK.flatten(), d_hQK.flatten(1).t())
        return d_weight

    def _heads(self, share: tuple[int, int]) -> slice:
        heads = self.weight.shape[1] // share[1]
        return slice(share[0] * heads, (share[0] + 1) * heads)


class Distances(nn.Module):
    """A number for each bucket of distances and each head. both: whether keys may stand behind a query."""

    def __init__(self, model: spec.Model, both: bool) -> None:
        super().__init__()
        self.both, self.buckets, self.furthest = both, model.distance_buckets, model.furthest_distance
        self.weight = nn.Parameter(torch.empty(self.buckets, model.heads))

    def forward(self, queries_Q: Tensor, keys_K: Tensor) -> Bias:
        """Of queries and keys at these positions."""
        return Bias(self.weight, self._bucket(keys_K - queries_Q[:, None]))

    def _bucket(self, distance: Tensor) -> Tensor:
        """Near distances have a bucket each; further ones share them, the wider the further (Raffel et al. 2020, 2.1)."""
        buckets, first = self.buckets, torch.zeros_like(distance)
        if self.both:
            buckets //= 2
            first = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp_min(0)
        exact = buckets // 2
        wide = torch.log(distance.clamp_min(1).float() / exact) / math.log(self.furthest / exact) * (buckets - exact)
        return first + torch.where(distance < exact, distance, (exact + wide.long()).clamp_max(buckets - 1))


class SourceBlock(Block):
    """Computes the source's part. last: its norm is that of the whole side."""

    def __init__(self, model: spec.Model, layer: int, last: bool) -> None:
        super().__init__(model, layer, causal=False)
        self.norm3 = RMSNorm(model.width, model.norm_eps) if last else None

    def forward(self, x_BLD: Tensor, around: Any = None, memory: LayerCache | None = None) -> Tensor:
        sides: Sides = around
        return torch.cat([self.read(x_BLD[:, : sides.source], sides.encoder), x_BLD[:, sides.source :]], 1)

    def read(self, x_BSD: Tensor, around: Around) -> Tensor:
        x_BSD = super().forward(x_BSD, around)
        return x_BSD if self.norm3 is None else cast(Tensor, self.norm3(x_BSD))


class TargetBlock(Block):
    """Computes the target's part, which looks at the source's. last: hands the source's on to nobody."""

    def __init__(self, model: spec.Model, layer: int, last: bool) -> None:
        super().__init__(model, layer, causal=True)
        self.norm3 = RMSNorm(model.width, model.norm_eps)
        self.cross = CrossAttention(model, f"blocks.{layer}.cross")
        self.dropout3 = Dropout(model.dropout, f"blocks.{layer}.dropout3")
        self.last = last

    def forward(self, x_BLD: Tensor, around: Any = None, memory: LayerCache | None = None) -> Tensor:
        sides: Sides = around
        source_BSD = x_BLD[:, : sides.source]
        y_BTD = self.write(x_BLD[:, sides.source :], self.cross.read(source_BSD), sides, memory)
        return y_BTD if self.last else torch.cat([source_BSD, y_BTD], 1)

    def write(self, x_BTD: Tensor, read: tuple[Tensor, Tensor], sides: Sides, memory: LayerCache | None) -> Tensor:
        """read: the source's keys and values."""
        noise = sides.decoder.noise
        x_BTD = x_BTD + self.dropout1(self.attention(self.norm1(x_BTD), sides.decoder, memory), noise)
        x_BTD = x_BTD + self.dropout3(self.cross(self.norm3(x_BTD), read, sides.across), noise)
        return cast(Tensor, x_BTD + self.dropout2(self.mlp(self.norm2(x_BTD)), noise))


class CrossAttention(nn.Module):
    """Queries of the target, keys and values of the source."""

    def __init__(self, model: spec.Model, path: str) -> None:
        super().__init__()
        self.head_width = model.head_width
        inner = model.heads * model.head_width
        self.q = Linear(model.width, inner, bias=False)
        self.kv = Linear(model.width, 2 * inner, bias=False)
        self.out = Linear(inner, model.width, bias=False)
        self.mix = Mix(Dropout(model.dropout, f"{path}.dropout"), causal=False)

    def read(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, [B, H, S, E] each."""
        k_BSX, v_BSX = self.kv(source_BSD).chunk(2, -1)
        return self._heads(k_BSX), self._heads(v_BSX)

    def forward(self, x_BTD: Tensor, read: tuple[Tensor, Tensor], around: Around) -> Tensor:
        q_BHTE = self._heads(self.q(x_BTD)) * math.sqrt(self.head_width)  # which attention divides by
        mixed_BHTE = self.mix(q_BHTE, *read, around.mask, around.noise, around.cut)
        return cast(Tensor, self.out(mixed_BHTE.transpose(1, 2).flatten(2)))

    def _heads(self, x_BLX: Tensor) -> Tensor:
        return cast(Tensor, x_BLX.unflatten(-1, (-1, self.head_width)).transpose(1, 2))


class Seq2Seq(Layered):
    """Tokens of both sides to logits of the target's next token.

    everywhere: parameters that every block computes with, and every stage of a pipeline holds.
    """

    everywhere = ("source_distances.weight", "target_distances.weight")

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.model = model
        self.context = sequence
        self.sharding = _sharding(model)
        self.initial = _initial(model)
        self.without_gradient = {}
        self.embed = Embedding(vocabulary, model.width)
        self.source_distances = Distances(model, both=True)
        self.target_distances = Distances(model, both=False)
        self.source_dropout = Dropout(model.dropout, "source.dropout")
        self.target_dropout = Dropout(model.dropout, "target.dropout")
        reading = [SourceBlock(model, layer, layer == model.layers - 1) for layer in range(model.layers)]
        writing = [TargetBlock(model, layer, layer == model.all_layers - 1) for layer in range(model.layers, model.all_layers)]
        self.blocks = nn.ModuleList([*reading, *writing])
        self.norm = RMSNorm(model.width, model.norm_eps)
        self.head = Linear(model.width, vocabulary, bias=False)
        self.scale = 1.0
        if model.tied_head:
            self.head.weight = self.embed.weight
            self.scale = model.width**-0.5  # embeddings are wide apart, and logits shall not be

    def forward(
        self,
        tokens_BL: Tensor,
        documents_BL: Tensor | None = None,
        noise: Noise | None = None,
        cut: Cut | None = None,
        source: int = 0,
    ) -> Tensor:
        """logits_BTV. source: how many of the row's positions are the source's. documents_BL: of the source, numbers of what sees each
        other, -1 of padding; of both sides where a row holds several pairs, and target n then sees source n alone."""
        sides = self.around(tokens_BL.shape[1], documents_BL, noise, cut, source)
        return self.leave(self.through_all(self.enter(tokens_BL, sides), sides))

    def read(self, source_BS: Tensor, rows: int, tokens: int, lengths_B: Tensor | None = None) -> Reading:
        """Sources as a whole, to be written behind: each in `rows` rows, of up to `tokens` tokens. lengths_B: of each, without padding."""
        return Reading(self, source_BS, rows, tokens, lengths_B)

    def around(self, length: int, documents_BL: Tensor | None, noise: Noise | None, cut: Cut | None = None, source: int = 0) -> Sides:
        """What blocks are given beside x, of rows of `length` positions here."""
        cuts = (None, None) if cut is None else cut.parts
        whole = source if cuts[0] is None else cuts[0].length
        target = length - source if cuts[1] is None else cuts[1].length
        here = source if cuts[0] is None else len(cuts[0].stream_S)
        source_BS, target_BT = (None, None) if documents_BL is None else (documents_BL[:, :whole], documents_BL[:, whole:])
        target_BT = None if target_BT is None or not target_BT.shape[1] else target_BT
        device = self.source_distances.weight.device
        reading, writing = torch.arange(whole, device=device), torch.arange(target, device=device)
        encoder = Around(
            mask=document_mask(source_BS, _places(cuts[0]), causal=False),
            noise=_of_side(noise, cuts[0]),
            cut=cuts[0],
            bias=self.source_distances(reading, reading),
        )
        decoder = Around(
            mask=document_mask(target_BT, _places(cuts[1])),
            noise=_of_side(noise, cuts[1]),
            cut=cuts[1],
            bias=self.target_distances(writing, writing),
        )
        seen = _seen(source_BS, target_BT, writing if cuts[1] is None else cuts[1].positions_L)
        return Sides(here, encoder, decoder, decoder._replace(mask=seen, bias=None))

    def enter(self, tokens_BL: Tensor, sides: Sides) -> Tensor:
        """x_BLD before the first block. Each side's positions are shared by the ranks of a tensor axis by themselves."""
        cut = sides.encoder.cut
        source = sides.source if cut is None else len(cut.positions_L)
        reading = self.source_dropout(self.embed(tokens_BL[:, :source]), sides.encoder.noise)
        writing = self.target_dropout(self.embed(tokens_BL[:, source:]), sides.decoder.noise)
        return torch.cat([reading, writing], 1)

    def leave(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV of what the last block returned."""
        return cast(Tensor, self.head(self.norm(x_BTD) * self.scale))


class Reading:
    """What was read of sources, and the memory of what is being written behind it, a token of each row at a time."""

    def __init__(self, model: Seq2Seq, source_BS: Tensor, rows: int, tokens: int, lengths_B: Tensor | None = None) -> None:
        self._model, self._rows = model, rows * len(source_BS)
        documents_BS = None if lengths_B is None else _padding_apart(lengths_B, source_BS.shape[1])
        self._seen = None if documents_BS is None else (documents_BS >= 0)[:, None, None].repeat_interleave(rows, 0)
        blocks = list(model.blocks)
        self._writing = [block for block in blocks if isinstance(block, TargetBlock)]
        sides = model.around(source_BS.shape[1], documents_BS, None, source=source_BS.shape[1])
        x_BSD = model.embed(source_BS)
        for block in blocks:
            if isinstance(block, SourceBlock):
                x_BSD = block.read(x_BSD, sides.encoder)
        self._read = [_each(block.cross.read(x_BSD), lambda part: part.repeat_interleave(rows, 0)) for block in self._writing]
        settings = model.model.model_copy(update={"layers": len(self._writing)})
        self._cache = Cache(settings, rows * len(source_BS), tokens, dtype=x_BSD.dtype, device=x_BSD.device)

    def next(self, last_N: Tensor) -> Tensor:
        """logits_NV behind the newest token of each row."""
        places_NL, mask = self._cache.extend(1)
        keys_K = torch.arange(mask.shape[-1], device=last_N.device)
        around = Around(mask=mask, bias=self._model.target_distances(places_NL[0], keys_K))
        sides = Sides(0, PLAIN, around, PLAIN._replace(mask=self._seen))
        x_NLD = self._model.embed(last_N[:, None])
        for layer, (block, (keys, values)) in enumerate(zip(self._writing, self._read, strict=True)):
            x_NLD = block.write(x_NLD, (keys, values), sides, self._cache.layer(layer))
        return self._model.leave(x_NLD)[:, -1]

    def select(self, rows: list[int]) -> None:
        """Go on with these rows, some perhaps twice: as many of each source as there are, or none."""
        self._cache.select(rows)
        if len(rows) < self._rows:
            self._rows = len(rows)
            self._read = [_each(read, lambda part: part[rows]) for read in self._read]
            self._seen = None if self._seen is None else self._seen[rows]


def _each(read: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return change(read[0]), change(read[1])


def _padding_apart(lengths_B: Tensor, length: int) -> Tensor:
    """Documents of sources of such lengths: 0, and -1 of what is padding."""
    return -(torch.arange(length, device=lengths_B.device) >= lengths_B[:, None]).long()


def _seen(source_BS: Tensor | None, target_BT: Tensor | None, queries_Q: Tensor) -> Tensor | None:
    """[B, 1, Q, S]: what of the source these positions of the target see: all but padding, or that of their own pair."""
    if source_BS is None:
        return None
    if target_BT is None:
        return (source_BS >= 0)[:, None, None].expand(-1, 1, len(queries_Q), -1)
    return (target_BT[:, queries_Q, None] == source_BS[:, None, :])[:, None]


def _places(cut: Cut | None) -> Tensor | None:
    return None if cut is None else cut.positions_L


def _of_side(noise: Noise | None, cut: Cut | None) -> Noise | None:
    """The same noise for a side's own positions."""
    if noise is None:
        return None
    noise = copy.copy(noise)
    noise.cut = cut
    return noise


def _sharding(model: spec.Model) -> dict[str, str]:
    return {
        "*_distances.weight": "replicated",  # each rank adds its heads' share
        "blocks.*.cross.q.weight": "column",
        "blocks.*.cross.kv.weight": "column(1,1)",
        "blocks.*.cross.out.weight": "row",
        **sharding(model),
    }


def _initial(model: spec.Model) -> InitialTable:
    """T5's: scores are not scaled, and queries start the smaller instead."""
    inner, width = model.heads * model.head_width, model.width
    narrow = Normal(width**-0.5)
    return {
        "*norm*.weight": Constant(1.0),
        "embed.weight": Normal(1.0),
        "blocks.*.attention.qkv.weight": Stacked((1, 1, 1), ((width * model.head_width) ** -0.5, width**-0.5, width**-0.5)),
        "blocks.*.cross.q.weight": Normal((width * model.head_width) ** -0.5),
        "blocks.*.out.weight": Normal(inner**-0.5),
        "blocks.*.mlp.down.weight": Normal(model.hidden_width**-0.5),
        "*": narrow,
    }
