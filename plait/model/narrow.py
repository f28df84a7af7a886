"""A model made smaller: of heads, neurons and layers the least important are cut out, and what is left is a model like any other.

    queries, keys, values   [q0 q1 | q2 q3 | k0 | k1 | v0 | v1]   a unit: a key head with its value head and the queries that share it
    out                     its columns
    gate and up             [g0 g1 g2 .. | u0 u1 u2 ..]           a unit: a neuron
    down                    its columns

A unit reads by rows of some matrices and writes by columns of others; without what it writes the rest computes what it computed. Sizes are
[model]'s, and so alike in all layers; which units stay, each layer tells by itself. T5's heads, whose distances all layers of a side
share, are chosen for a side as a whole. Importance is

    taylor      the mean over micro-batches of (dL/dz)^2, where z = 1 is what a unit's writing is multiplied with:
                dL/dz = sum of W dL/dW over what it writes by            Michel et al. 2019; Molchanov et al. 2019, first order
    magnitude   |what it reads by| |what it writes by|, Euclidean norms: no rescaling of one against the other changes it
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait import spec

Values = Mapping[str, Tensor]
"""Parameters, or their gradients, by path."""


@dataclass(frozen=True)
class Slices:
    """Where units stand in a parameter: unit u has the indices sections[s][u] along `dim`. place: of a stack, the matrix."""

    path: str
    dim: int
    sections: tuple[Tensor, ...]
    place: int | None = None

    def sums(self, values: Tensor) -> Tensor:
        """Of each unit's values."""
        matrix = values if self.place is None else values[self.place]
        along = matrix.transpose(0, self.dim).reshape(matrix.shape[self.dim], -1).sum(1)
        return torch.stack([along[section].sum(1) for section in self.sections]).sum(0)

    def taken(self, values: Tensor, kept: Tensor) -> Tensor:
        """The same parameter, or matrix of a stack, of the units that are kept alone."""
        matrix = values if self.place is None else values[self.place]
        return matrix.index_select(self.dim, torch.cat([section[kept].flatten() for section in self.sections]).to(matrix.device))


@dataclass(frozen=True)
class Member:
    """What units of a group read and write by, in one layer."""

    layer: int
    reads: tuple[Slices, ...]
    writes: tuple[Slices, ...]


@dataclass(frozen=True)
class Group:
    """Equal units, of which the same number stays wherever a setting says. per_unit: what one of them counts in that setting."""

    setting: str
    units: int
    members: tuple[Member, ...]
    per_unit: float = 1.0


@dataclass(frozen=True)
class Scores:
    """Importance of each group's units, and of each layer."""

    units: list[Tensor]
    layers: list[float]


@dataclass(frozen=True)
class Kept:
    """What stays: layers, and units by group."""

    layers: list[int]
    units: list[Tensor]


def groups(model: spec.Model) -> list[Group]:
    """All that can be cut out of a model of one of the families."""
    found: list[Group] = []
    if model.family == "t5":
        sides = (("source", range(model.layers)), ("target", range(model.layers, model.all_layers)))
        found += [_heads_of_side(model, side, layers) for side, layers in sides]
        found += [_heads_across(model, layer) for layer in range(model.layers, model.all_layers)]
    else:
        found += [Group("heads", model.key_value_heads, (_heads(model, layer),), _shared(model)) for layer in range(model.layers)]
    for layer in range(model.all_layers):
        found += _mlp(model, layer)
    return found


def by_magnitude(model: spec.Model, values: Values) -> Scores:
    """Of the weights alone."""
    layers = [0.0] * model.all_layers
    units = []
    for group in groups(model):
        total = torch.zeros(group.units, dtype=torch.float64)
        for member in group.members:
            score = _norms(member.reads, values) * _norms(member.writes, values)
            layers[member.layer] += float(score.sum())
            total += score
        units.append(total)
    return Scores(units, layers)


class Taylor:
    """Importance by what the loss tells: `add` the gradients of some micro-batches, each by itself."""

    def __init__(self, model: spec.Model) -> None:
        self._groups = groups(model)
        self._units = [torch.zeros(group.units, dtype=torch.float64) for group in self._groups]
        self._layers = torch.zeros(model.all_layers, dtype=torch.float64)

    @torch.no_grad()
    def add(self, values: Values, gradients: Values) -> None:
        layers = torch.zeros_like(self._layers)
        for group, score in zip(self._groups, self._units, strict=True):
            slopes = torch.zeros_like(score)
            for member in group.members:
                slope = sum(slices.sums(_product(values, gradients, slices.path)) for slices in member.writes)
                assert isinstance(slope, Tensor)
                slopes += slope
                layers[member.layer] += slope.sum()
            score += slopes**2
        for path in values:
            if found := re.fullmatch(r"blocks\.(\d+)\..*\.(?:out|down)\.bias", path):
                layers[int(found[1])] += _product(values, gradients, path).sum()
        self._layers += layers**2

    def scores(self) -> Scores:
        return Scores(self._units, self._layers.tolist())


def choose(model: spec.Model, smaller: spec.Model, scores: Scores) -> Kept:
    """The most important ones, as many as `smaller` has, in the order in which they stand."""
    sides = [range(model.layers), range(model.layers, model.all_layers)]
    counts = [smaller.layers, smaller.all_layers - smaller.layers]
    layers = [
        side[place]
        for side, count in zip(sides, counts, strict=True)
        for place in _best(torch.tensor([scores.layers[layer] for layer in side]), count).tolist()
    ]
    sizes = {"heads": smaller.heads, "hidden": smaller.hidden_width, "expert_hidden": smaller.mixture.hidden}
    units = [_best(score, round(sizes[group.setting] / group.per_unit)) for group, score in zip(groups(model), scores.units, strict=True)]
    return Kept(layers, units)


def cut_out(model: spec.Model, values: Values, kept: Kept) -> dict[str, Tensor]:
    """The parameters of the smaller model, by its own paths."""
    places = {layer: place for place, layer in enumerate(kept.layers)}
    cut: dict[str, list[tuple[Slices, Tensor]]] = {}
    for group, units in zip(groups(model), kept.units, strict=True):
        for member in group.members:
            for slices in (*member.reads, *member.writes):
                cut.setdefault(slices.path, []).append((slices, units))
    made = {}
    for path, value in values.items():
        if (new := _renamed(model, path, places, kept.layers)) is None:
            continue
        taken = [slices.taken(value, units) for slices, units in cut.get(path, ()) if slices.path in values]
        made[new] = value if not taken else taken[0] if value.ndim < 3 else torch.stack(taken)
    return made


def _heads(model: spec.Model, layer: int) -> Member:
    width, units = model.head_width, model.key_value_heads
    queries = torch.arange(model.heads * width).view(units, -1)
    keys = model.heads * width + torch.arange(units * width).view(units, -1)
    stacked = (queries, keys, keys + units * width)
    path = f"blocks.{layer}.attention"
    reads = [Slices(f"{path}.qkv.weight", 0, stacked)]
    reads += [Slices(f"{path}.qkv.bias", 0, stacked)] if model.biased_qkv else []
    return Member(layer, tuple(reads), (Slices(f"{path}.out.weight", 1, (queries,)),))


def _heads_of_side(model: spec.Model, side: str, layers: range) -> Group:
    members = [_heads(model, layer) for layer in layers]
    distances = Slices(f"{side}_distances.weight", 1, (torch.arange(model.heads)[:, None],))
    first = Member(layers[0], (*members[0].reads, distances), members[0].writes)
    return Group("heads", model.heads, (first, *members[1:]))


def _heads_across(model: spec.Model, layer: int) -> Group:
    rows = torch.arange(model.heads * model.head_width).view(model.heads, -1)
    path = f"blocks.{layer}.cross"
    reads = (Slices(f"{path}.q.weight", 0, (rows,)), Slices(f"{path}.kv.weight", 0, (rows, rows + rows.numel())))
    return Group("heads", model.heads, (Member(layer, reads, (Slices(f"{path}.out.weight", 1, (rows,)),)),))


def _mlp(model: spec.Model, layer: int) -> Iterator[Group]:
    path = f"blocks.{layer}.mlp"
    if model.mixes(layer):
        mixture = model.mixture
        for expert in range(mixture.experts):
            gated = _gated(layer, f"{path}.experts.gate_up", f"{path}.experts.down", mixture.hidden, expert)
            yield Group("expert_hidden", mixture.hidden, (gated,))
        if mixture.shared:
            wide = mixture.shared * mixture.hidden
            shared = _gated(layer, f"{path}.shared.gate_up.weight", f"{path}.shared.down.weight", wide)
            yield Group("expert_hidden", wide, (shared,), 1 / mixture.shared)
    elif model.layer_norms or (model.family == "t5" and not model.gated):
        rows = (torch.arange(model.hidden_width)[:, None],)
        biased = (Slices(f"{path}.up.bias", 0, rows),) if model.layer_norms else ()
        member = Member(layer, (Slices(f"{path}.up.weight", 0, rows), *biased), (Slices(f"{path}.down.weight", 1, rows),))
        yield Group("hidden", model.hidden_width, (member,))
    else:
        gated = _gated(layer, f"{path}.gate_up.weight", f"{path}.down.weight", model.hidden_width)
        yield Group("hidden", model.hidden_width, (gated,))


def _gated(layer: int, gate_up: str, down: str, hidden: int, place: int | None = None) -> Member:
    rows = torch.arange(hidden)[:, None]
    return Member(layer, (Slices(gate_up, 0, (rows, rows + hidden), place),), (Slices(down, 1, (rows,), place),))


def _shared(model: spec.Model) -> int:
    """Query heads of a key head."""
    return model.heads // model.key_value_heads


def _norms(several: Sequence[Slices], values: Values) -> Tensor:
    """Of each unit."""
    squares = [slices.sums(values[slices.path].double() ** 2) for slices in several]
    return torch.stack(squares).sum(0).sqrt().cpu()


def _product(values: Values, gradients: Values, path: str) -> Tensor:
    return (values[path].double() * gradients[path].double()).cpu()


def _best(scores: Tensor, count: int) -> Tensor:
    """Places of the highest, in order; of equals the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _renamed(model: spec.Model, path: str, places: Mapping[int, int], layers: Sequence[int]) -> str | None:
    """The path in the smaller model; None where its layer is cut out. The norm behind T5's source stands in the last of its layers."""
    found = re.match(r"blocks\.(\d+)(?=\.)", path)
    if found is None:
        return path
    layer = int(found[1])
    if model.family == "t5" and path == f"blocks.{model.layers - 1}.norm3.weight":
        layer = max(kept for kept in layers if kept < model.layers)
    return None if layer not in places else f"blocks.{places[layer]}{path[found.end() :]}"
