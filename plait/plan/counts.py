"""Parameters and floating-point operations of the decoder families, counted from their settings alone.

Operations of a token, forward and backward, by the convention of PaLM (Chowdhery et al. 2022, appendix B), which nanoGPT,
torchtitan and Megatron-Core share:

    6 N + 12 layers width sequence

N: parameters that multiply activations (embeddings that are looked up do not; a head does, tied or not). The second term is
attention over all positions, without halving for causality. Recomputed activations count as nothing gained.
"""

from __future__ import annotations

from plait import spec


def parameters(model: spec.Model, vocabulary: int, sequence: int) -> int:
    """All parameters; a tied head is the embedding, counted once."""
    head = 0 if model.tied_head else vocabulary * model.width
    positions = sequence * model.width if model.family == "gpt2" else 0
    return vocabulary * model.width + positions + model.layers * _block(model) + _norm(model) + head


def flops_per_token(model: spec.Model, vocabulary: int, sequence: int) -> float:
    """Operations of one token in a sequence of `sequence`, forward and backward."""
    multiplying = model.layers * sum(_matrices(model)) + vocabulary * model.width
    return 6.0 * multiplying + 12.0 * model.layers * model.width * sequence


def _block(model: spec.Model) -> int:
    biases = _biases(model) if model.family == "gpt2" else 0
    return sum(_matrices(model)) + biases + 2 * _norm(model)


def _matrices(model: spec.Model) -> tuple[int, int, int, int]:
    """Queries, keys and values; attention's output; into the MLP; out of it."""
    into_mlp = model.hidden_width * (1 if model.family == "gpt2" else 2)
    return model.width * _qkv(model), model.width**2, model.width * into_mlp, model.hidden_width * model.width


def _biases(model: spec.Model) -> int:
    return _qkv(model) + model.width + model.hidden_width + model.width


def _qkv(model: spec.Model) -> int:
    return (model.heads + 2 * model.key_value_heads) * (model.width // model.heads)


def _norm(model: spec.Model) -> int:
    return model.width * (2 if model.family == "gpt2" else 1)
