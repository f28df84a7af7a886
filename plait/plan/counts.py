"""Counts of parameters and FLOPs from the settings alone, without building a model and without torch.

Conventions: a multiply and an add are two FLOPs; backward costs twice the forward; embeddings looked up cost nothing, the head
costs its matmul also where it is tied; attention is counted as the whole square, 12 x layers x width of all heads x sequence a token, as in
PaLM (Chowdhery et al. 2022, appendix B), although causal attention needs half; recomputing is not counted as useful. Of a mixture a
token is multiplied with its own experts, the shared ones and the router.
"""

from __future__ import annotations

from plait import spec


def parameters(model: spec.Model, vocabulary: int, sequence: int) -> int:
    """Values that are learned; tied ones count once. Raises ValueError for a user's own model: only the built one knows."""
    return _values(model, vocabulary, sequence, model.mixture.experts)


def active_parameters(model: spec.Model, vocabulary: int, sequence: int) -> int:
    """Those that one token meets: all but the experts that others are sent to. Raises as `parameters`."""
    return _values(model, vocabulary, sequence, model.mixture.per_token)


def matmul_parameters(model: spec.Model, vocabulary: int) -> int:
    """Values that every token is multiplied with: all matrices of the blocks, but for other tokens' experts, and the head."""
    _known(model)
    transform = model.width**2 if model.family == "bert" else 0
    return _matrices(model, model.mixture.per_token) + transform + vocabulary * model.width


def flops_per_token(model: spec.Model, vocabulary: int, sequence: int, *, built: int | None = None) -> float:
    """FLOPs of training on one token, forward and backward: 6 N + 12 x layers x width of all heads x sequence.

    N: `matmul_parameters`; for a user's own model `built`, the parameters that the built one has, stands for it. Raises
    ValueError for a user's own model without it.
    """
    multiplied = built if model.family not in spec.Model.FAMILIES and built is not None else matmul_parameters(model, vocabulary)
    return 6.0 * multiplied + 12.0 * _attentions(model) * model.heads * model.head_width * sequence


def knee(model: spec.Model, outputs: int) -> float:
    """Tokens of a row whose attention costs as much as all else."""
    none, one = (flops_per_token(model, outputs, tokens) for tokens in (0, 1))
    return none / (one - none)


def flops_per_target(model: spec.Model, vocabulary: int, source: int, target: int, targets: float) -> float:
    """FLOPs of an encoder-decoder for each token that it tells, in rows of so many positions of both sides and so many targets."""
    inner, decoding = model.heads * model.head_width, model.all_layers - model.layers
    attention, mlp = 4 * model.width * inner, _mlp(model, 0, 0)
    reading = source * (model.layers * (attention + mlp) + decoding * attention / 2)  # keys and values of the source besides
    writing = target * (decoding * (1.5 * attention + mlp) + vocabulary * model.width)
    scores = inner * (model.layers * source**2 + decoding * target * (target + source))
    return (6.0 * (reading + writing) + 12.0 * scores) / targets


def _known(model: spec.Model) -> None:
    if model.family not in spec.Model.FAMILIES:
        raise ValueError(f'the parameters of your own model, family = "{model.family}", can be counted only when it is built')


def _values(model: spec.Model, vocabulary: int, sequence: int, experts: int) -> int:
    """All values, with so many experts in a mixture."""
    _known(model)
    places = sequence * model.width if model.layer_norms else 0
    head = 0 if model.tied_head else vocabulary * model.width
    ends = vocabulary * model.width + places + head + _norm(model) + (_of_encoder(model, vocabulary) if model.family == "bert" else 0)
    if model.family == "t5":  # a norm before each look across, one behind the encoder, and a table of distances a side
        ends += (model.all_layers - model.layers + 1) * _norm(model) + 2 * model.distance_buckets * model.heads
    return ends + _matrices(model, experts) + model.all_layers * _vectors(model)


def _of_encoder(model: spec.Model, vocabulary: int) -> int:
    """Values at BERT's ends that no decoder has: two segments, a norm before the blocks, a transform behind them, biases of the head."""
    return 2 * model.width + _norm(model) + model.width**2 + model.width + vocabulary


def _matrices(model: spec.Model, experts: int) -> int:
    """Values in the matrices of the blocks, with so many experts in a mixture."""
    attention = model.width * model.head_width * 2 * (model.heads + model.key_value_heads)
    return _attentions(model) * attention + sum(_mlp(model, layer, experts) for layer in range(model.all_layers))


def _attentions(model: spec.Model) -> int:
    """How many there are: a decoder's layer that looks at an encoder has two."""
    return 2 * model.all_layers - model.layers if model.family == "t5" else model.layers


def _mlp(model: spec.Model, layer: int, experts: int) -> int:
    """Values in the matrices of one layer's MLP, or of its mixture with so many experts beside the shared ones."""
    if not model.mixes(layer):
        plain = model.layer_norms or (model.family == "t5" and not model.gated)
        return (2 if plain else 3) * model.width * model.hidden_width
    mixture = model.mixture
    return model.width * (mixture.experts + 3 * mixture.hidden * (experts + mixture.shared))


def _vectors(model: spec.Model) -> int:
    """Values in the norms and biases of one block."""
    stacked = model.head_width * (model.heads + 2 * model.key_value_heads) if model.biased_qkv else 0
    others = model.width + model.hidden_width + model.width if model.layer_norms else 0
    return 2 * _norm(model) + stacked + others + (2 * model.head_width if model.qk_norm else 0)


def _norm(model: spec.Model) -> int:
    return 2 * model.width if model.layer_norms else model.width
