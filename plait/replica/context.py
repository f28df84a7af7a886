"""Context parallelism: the ranks of an axis share each sample, cut by positions, and attention is where they meet.

    ring        each rank keeps its queries; keys and values travel from rank to rank until all have seen all
    ulysses     all-to-all turns a part of the positions with all heads into all positions with a part of the heads, and back

Everything but attention computes each position by itself, so that the rest of a model knows nothing of this: `insert` puts an
exchange into its `Mix` modules. The ring is cut zig-zag, since a query sees the past alone and later ones have more to do:

    sample, in 2 C chunks      0   1   2   3   4   5   6   7            C = 4
    rank                       0   1   2   3   3   2   1   0            rank r holds chunks r and 2 C - 1 - r

    own keys             causal, in order: its chunks are each earlier than the next
    from an earlier rank all its queries see the first of the two chunks; the second is in the future of them all
    from a later rank    its second chunk of queries sees both; the first sees neither

So each rank computes the same in each round: half of what its queries and those keys would make, and no more.
(Liu et al. 2023, ring attention; Brandon et al. 2023, striped; Jacobs et al. 2023, DeepSpeed Ulysses.)
Shapes: B samples, H query heads, G key heads, L positions of a rank, C x L = length of a sample, E width of a head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import P2POp, ProcessGroup

from plait.errors import RunFileError
from plait.model.attention import Exchange, Keep, Mix, ScoreBias, attend, sums
from plait.model.cut import Cut
from plait.model.noise import Dropout, Noise
from plait.model.partial import Sight, attend_part, merge, part_gradients
from plait.replica.transport import POOL, gather_rows

By = Literal["ring", "ulysses"]
ALL = slice(None)
MASKS = 3
"""That a model's layers are given: an encoder-decoder's see the source in its own rows and in the target's, and the target in its own."""


def positions(length: int, place: int, ranks: int, by: By) -> Tensor:
    """The global positions that a rank holds of a sample, in order, [length / ranks], int64. Raises RunFileError: not divisible."""
    if by == "ulysses":
        return _chunks(length, ranks, ranks, by)[place]
    chunks = _chunks(length, 2 * ranks, ranks, by)
    return torch.cat([chunks[place], chunks[2 * ranks - 1 - place]])


def exchange(by: By, group: ProcessGroup) -> Exchange:
    """What stands in for attention on a rank of `group`; one serves all layers of a model."""
    return Ring(group) if by == "ring" else Ulysses(group)


def insert(module: nn.Module, exchange: Exchange) -> None:
    """Have every `Mix` of the module exchange. Raises RunFileError: it has none."""
    mixes = [part for part in module.modules() if isinstance(part, Mix)]
    if not mixes:
        raise RunFileError(
            f"layout.context: {type(module).__name__} has no plait.model.attention.Mix, where alone positions of different ranks can "
            "meet; compute its attention with Mix, or leave layout.context out"
        )
    for mix in mixes:
        mix.exchange = exchange


class Ring:
    """Keys and values travel around the group, each block while the one before it is computed on.

    pool: of what travels, two blocks of keys and values and two of their gradients, the same memory in all layers.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.place, self.ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self._group = group
        self.pool = POOL
        self._places = _Places("ring", self.place, self.ranks)

    def __call__(
        self,
        q_BHLE: Tensor,
        k_BGLE: Tensor,
        v_BGLE: Tensor,
        mask: Tensor | None,
        dropout: Dropout,
        noise: Noise | None,
        cut: Cut,
        causal: bool = True,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """As `plait.model.attention.Exchange`."""
        keys = self._places.of(k_BGLE.shape[2] * self.ranks, cut.positions_L.device)  # of a source, where queries are a target's
        rounds = _Rounds(self.place, self._places(cut), keys, mask, dropout, noise, cut, causal, bias)
        return cast(Tensor, _Ring.apply(*_cast(q_BHLE, k_BGLE, v_BGLE), None if bias is None else bias.weight, self, rounds))

    def around(self, k_BGLE: Tensor, v_BGLE: Tensor) -> Iterator[Tensor]:
        """Keys and values, [2, B, G, L, E], of this rank, of the one before it, and so on; the next travel while one block is used."""
        here, elsewhere = (self.pool.take((2, *k_BGLE.shape), k_BGLE.dtype, k_BGLE.device) for _ in range(2))
        torch.stack((k_BGLE, v_BGLE), out=here)
        for _ in range(self.ranks - 1):
            arriving = self.pass_on(here, elsewhere)
            yield here
            here, elsewhere = arriving.wait(), here
        yield here

    def pass_on(self, outgoing: Tensor, incoming: Tensor) -> _Arriving:
        """Start to send to the next rank and to receive from the one before."""
        after, before = (self.place + 1) % self.ranks, (self.place - 1) % self.ranks
        sends = P2POp(torch.distributed.isend, outgoing, group=self._group, group_peer=after)
        receives = P2POp(torch.distributed.irecv, incoming, group=self._group, group_peer=before)
        return _Arriving(incoming, torch.distributed.batch_isend_irecv([sends, receives]))


class Ulysses:
    """Heads are exchanged for positions: each rank computes a part of the heads on whole samples."""

    def __init__(self, group: ProcessGroup) -> None:
        self.place, self.ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self._group = group
        self._gathered: list[tuple[Tensor, Tensor]] = []
        self._places = _Places("ulysses", self.place, self.ranks)

    def __call__(
        self,
        q_BHLE: Tensor,
        k_BGLE: Tensor,
        v_BGLE: Tensor,
        mask: Tensor | None,
        dropout: Dropout,
        noise: Noise | None,
        cut: Cut,
        causal: bool = True,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """As `plait.model.attention.Exchange`."""
        _check_heads(q_BHLE.shape[1], k_BGLE.shape[1], self.ranks)
        self._places(cut)
        share = (cut.head_share[0] * self.ranks + self.place, cut.head_share[1] * self.ranks)
        q_BHLE, k_BGLE, v_BGLE = _cast(q_BHLE, k_BGLE, v_BGLE)
        if q_BHLE.shape[2] == k_BGLE.shape[2]:
            q_BhSE, k_BgSE, v_BgSE = self._to_heads(q_BHLE, k_BGLE, v_BGLE)
        else:  # of a target and of a source
            (q_BhSE,), (k_BgSE, v_BgSE) = self._to_heads(q_BHLE), self._to_heads(k_BGLE, v_BGLE)
        added = None if bias is None else bias.of(share, q_BhSE.dtype)
        mixed_BhSE = attend(q_BhSE, k_BgSE, v_BgSE, self._whole(mask), dropout, _with_heads(noise, cut, share), causal, added)
        return self._to_positions(mixed_BhSE)

    def _to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Each [B, heads, L, E] as [B, heads / C, C x L, E], in one exchange."""
        heads = [part.shape[1] // self.ranks for part in parts]
        pieces_CBhLE = torch.cat([part.unflatten(1, (self.ranks, -1)).transpose(0, 1) for part in parts], 2)
        received_CBhLE: Tensor = _AllToAll.apply(pieces_CBhLE, self._group)
        whole_BhSE = received_CBhLE.permute(1, 2, 0, 3, 4).flatten(2, 3)
        return tuple(torch.split(whole_BhSE, heads, 1))

    def _to_positions(self, mixed_BhSE: Tensor) -> Tensor:
        pieces_CBhLE = mixed_BhSE.unflatten(2, (self.ranks, -1)).movedim(2, 0)
        received_CBhLE: Tensor = _AllToAll.apply(pieces_CBhLE, self._group)
        return received_CBhLE.transpose(0, 1).flatten(1, 2)

    def _whole(self, mask: Tensor | None) -> Tensor | None:
        """The rows of all ranks, [B, 1, C x L, keys]; gathered for the first layer, since all are given the same masks."""
        if mask is None:
            return None
        known = next((whole for part, whole in self._gathered if part is mask), None)
        if known is None:
            parts_CBL = mask.new_empty((self.ranks, *mask.shape))
            parts_CBL[self.place] = mask
            gather_rows(parts_CBL.view(torch.uint8).flatten(1), self._group)
            known = parts_CBL.permute(1, 2, 0, 3, 4).flatten(2, 3)
            self._gathered = [(mask, known), *self._gathered[: MASKS - 1]]
        return known


@dataclass(frozen=True)
class _Arriving:
    """What is on its way into a tensor."""

    tensor: Tensor
    works: list[Any]

    def wait(self) -> Tensor:
        """Until it is there, and what was sent in exchange has left."""
        for work in self.works:
            work.wait()
        return self.tensor


class _Places:
    """The positions of every rank, and that a cut's are this rank's."""

    def __init__(self, by: By, place: int, ranks: int) -> None:
        self._by, self._place, self._ranks = by, place, ranks
        self._known: dict[int, list[Tensor]] = {}
        self._compared: set[int] = set()

    def __call__(self, cut: Cut) -> list[Tensor]:
        places = self.of(cut.shared, cut.positions_L.device)
        if cut.shared not in self._compared and not torch.equal(cut.positions_L, places[self._place]):
            raise ValueError(
                f"the cut's positions are not those of rank {self._place} of {self._ranks}; "
                f'cut samples by plait.replica.context.positions({cut.shared}, {self._place}, {self._ranks}, "{self._by}")'
            )
        self._compared.add(cut.shared)
        return places

    def of(self, length: int, device: torch.device) -> list[Tensor]:
        """Of samples of so many positions."""
        if length not in self._known:
            self._known[length] = [positions(length, place, self._ranks, self._by).to(device) for place in range(self._ranks)]
        return self._known[length]


@dataclass(frozen=True)
class _Rounds:
    """What rank `own` of a ring computes in each round, given the positions of all ranks, of queries and of keys."""

    own: int
    places: list[Tensor]
    keys: list[Tensor]
    mask: Tensor | None
    dropout: Dropout
    noise: Noise | None
    cut: Cut
    causal: bool
    bias: ScoreBias | None

    def of(self, heads: int, dtype: torch.dtype, learning: bool = False) -> Iterator[tuple[slice, slice, Sight]]:
        """Which queries meet which of the keys that are here, and what they see of them. dtype: of scores. learning: gradients follow."""
        half, ranks = len(self.places[0]) // 2, len(self.places)
        for source in ((self.own - round_) % ranks for round_ in range(ranks)):
            queries = slice(half, None) if self.causal and source > self.own else ALL
            keys = slice(half) if self.causal and source < self.own else ALL
            sight = self._sight(source, queries, keys, heads)
            if self.bias is not None:
                bias_HLK = self._bias(source, queries, keys).of(self.cut.head_share, dtype)
                sight = sight._replace(bias_HLK=bias_HLK, d_bias_HLK=torch.zeros_like(bias_HLK) if learning else None)
            yield queries, keys, sight

    def d_weight(self, round_: int, queries: slice, keys: slice, sight: Sight) -> Tensor | None:
        """The gradient of what the bias is made of, once a round's has been added to its sight."""
        if self.bias is None or sight.d_bias_HLK is None:
            return None
        bias = self._bias((self.own - round_) % len(self.places), queries, keys)
        return bias.gradient(self.cut.head_share, sight.d_bias_HLK)

    def _bias(self, source: int, queries: slice, keys: slice) -> ScoreBias:
        assert self.bias is not None
        return self.bias.part(self.places[self.own][queries], self.keys[source][keys])

    def _sight(self, source: int, queries: slice, keys: slice, heads: int) -> Sight:
        rows_L, columns_K = self.places[self.own][queries], self.keys[source][keys]
        mask = None if self.mask is None else self.mask[:, :, queries].index_select(3, columns_K)
        keep = None
        if self.noise is not None and self.dropout.rate > 0:
            heads_H = torch.arange(heads, device=rows_L.device) + self.cut.head_share[0] * heads
            keep = Keep(self.dropout, self.noise, heads_H, rows_L, columns_K, self.cut.length)
        return Sight(self.causal and mask is None and source == self.own, mask, keep)


class _Ring(torch.autograd.Function):
    """Keeps its inputs, what it returned and one number a query; for the gradient, keys and values travel once more.

    Their gradients follow one round behind: the rank after a block's own begins a sum, each adds its share, the last sends it home.
    """

    @staticmethod
    def forward(ctx: Any, q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, weight: Tensor | None, ring: Ring, rounds: _Rounds) -> Tensor:
        wide = torch.promote_types(q_BHLE.dtype, torch.float32)
        mixed_BHLE = torch.zeros_like(q_BHLE, dtype=wide)
        lse_BHL = torch.full(q_BHLE.shape[:3], -math.inf, dtype=wide, device=q_BHLE.device)
        for (queries, keys, sight), (k, v) in zip(rounds.of(q_BHLE.shape[1], wide), ring.around(k_BGLE, v_BGLE), strict=True):
            part = attend_part(q_BHLE[:, :, queries], k[:, :, keys], v[:, :, keys], sight)
            merge(mixed_BHLE[:, :, queries], lse_BHL[:, :, queries], *part)
        mixed_BHLE = mixed_BHLE.to(q_BHLE.dtype)
        ctx.save_for_backward(q_BHLE, k_BGLE, v_BGLE, mixed_BHLE, lse_BHL)
        ctx.ring, ctx.rounds = ring, rounds
        return mixed_BHLE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHLE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
        q_BHLE, k_BGLE, v_BGLE, mixed_BHLE, lse_BHL = ctx.saved_tensors
        ring: Ring = ctx.ring
        dq_BHLE = torch.zeros_like(q_BHLE, dtype=lse_BHL.dtype)
        d_block, spare = (ring.pool.take((2, *k_BGLE.shape), lse_BHL.dtype, k_BGLE.device) for _ in range(2))
        arriving = _Arriving(d_block.zero_(), [])
        d_weight = None if ctx.rounds.bias is None else sums(ctx.rounds.bias.weight.detach())
        rounds = zip(ctx.rounds.of(q_BHLE.shape[1], lse_BHL.dtype, learning=True), ring.around(k_BGLE, v_BGLE), strict=True)
        for round_, ((queries, keys, sight), (k, v)) in enumerate(rounds):
            gradient, q, mixed, lse = (x[:, :, queries] for x in (gradient_BHLE, q_BHLE, mixed_BHLE, lse_BHL))
            dq, dk, dv = part_gradients(gradient, q, k[:, :, keys], v[:, :, keys], mixed, lse, sight)
            dq_BHLE[:, :, queries] += dq
            if d_weight is not None:
                d_weight += ctx.rounds.d_weight(round_, queries, keys, sight)
            if round_ == 0:
                d_own = torch.stack((dk, dv)).to(dq_BHLE.dtype)
                continue
            d_block = arriving.wait()
            d_block[0, :, :, keys] += dk
            d_block[1, :, :, keys] += dv
            arriving = ring.pass_on(d_block, spare)
            spare = d_block
        dk_BGLE, dv_BGLE = d_own.add_(arriving.wait()).to(k_BGLE.dtype)
        d_weight = None if d_weight is None else d_weight.to(ctx.rounds.bias.weight.dtype)
        return dq_BHLE.to(q_BHLE.dtype), dk_BGLE, dv_BGLE, d_weight, None, None


class _AllToAll(torch.autograd.Function):
    """Piece i of [C, ...] goes to rank i, piece j of the result is from rank j: its own gradient."""

    @staticmethod
    def forward(ctx: Any, pieces_C: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        received_C = torch.empty(pieces_C.shape, dtype=pieces_C.dtype, device=pieces_C.device)
        torch.distributed.all_to_all_single(received_C, pieces_C.contiguous(), group=group)
        return received_C

    @staticmethod
    def backward(ctx: Any, gradient_C: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _AllToAll.apply(gradient_C, ctx.group)), None


def _cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """To what matmuls are computed in here, as torch's own attention does."""
    kind = tensors[0].device.type
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors) if torch.is_autocast_enabled(kind) else tensors


def _with_heads(noise: Noise | None, cut: Cut, share: tuple[int, int]) -> Noise | None:
    """The same noise, for this share of the heads."""
    if noise is None:
        return None
    noise = copy.copy(noise)
    noise.cut = replace(cut, head_share=share)
    return noise


def _chunks(length: int, number: int, ranks: int, by: By) -> tuple[Tensor, ...]:
    """All positions, in equal chunks."""
    if length % number:
        nearest = max(fewer for fewer in range(1, ranks + 1) if fewer == 1 or length % (number // ranks * fewer) == 0)
        lengths = " or ".join(str(near) for near in (length - length % number, length - length % number + number) if near)
        raise RunFileError(
            f'layout.context = {ranks} by "{by}" cuts a sequence into {number} equal chunks, and {length} positions cannot be cut so; '
            f"the nearest that work are layout.context = {nearest} and data.sequence = {lengths}"
        )
    return torch.arange(length).chunk(number)


def _check_heads(heads: int, kv_heads: int, ranks: int) -> None:
    both = math.gcd(heads, kv_heads)
    if both % ranks:
        nearest = max(fewer for fewer in range(1, ranks) if both % fewer == 0)
        fewer = f"layout.context = {nearest} or " if nearest > 1 else ""
        raise RunFileError(
            f"layout.context = {ranks} does not divide the {heads} heads and {kv_heads} key and value heads that a rank has, as "
            f'layout.context_by = "ulysses" needs; use {fewer}layout.context_by = "ring"'
        )
