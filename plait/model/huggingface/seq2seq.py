"""T5: plait's encoder-decoder under its names at Hugging Face, those of T5ForConditionalGeneration.

    t5      ReLU, the head is the embedding again, and what it reads is scaled      tied, not gated
    1.1     gated GELU, a head of its own                                           gated, not tied

transformers 5 writes a 1.1 without its head, which it takes for the embedding again: it is read as a head with equal values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plait.model.huggingface.dialect import Config, Dialect, Shape, Weight, same, stacked

_FORMS = {"relu": False, "gated-gelu": True}
UNWRITTEN = 512
"""Positions that a model without a longest text is imported for, unless others are asked for."""


def _read(config: Config) -> dict[str, Any]:
    form = config.take("feed_forward_proj", "relu")
    if form not in _FORMS:
        raise config.lacks("feed_forward_proj", form, "has 'relu' and 'gated-gelu'")
    config.ignore("dense_act_fn", "is_gated_act", "classifier_dropout", "n_positions", "output_past")
    config.only("is_decoder", False)
    config.only("is_encoder_decoder", True)
    tied, scaled = config.maybe("tie_word_embeddings"), config.maybe("scale_decoder_outputs")
    layers, heads = config.take("num_layers"), config.take("num_heads")
    width, head_size = config.take("d_model"), config.take("d_kv")
    return {
        "family": "t5",
        "layers": layers,
        "decoder_layers": config.take("num_decoder_layers", layers),
        "width": width,
        "heads": heads,
        "head_size": None if head_size * heads == width else head_size,
        "hidden": config.take("d_ff"),
        "gated": _FORMS[form],
        "buckets": config.take("relative_attention_num_buckets", 32),
        "furthest": config.take("relative_attention_max_distance", 128),
        "dropout": config.rates("dropout_rate"),
        "norm_eps": config.take("layer_norm_epsilon", 1e-6),
        "tied": tied is not False if scaled is None else bool(scaled),
        "vocabulary": config.take("vocab_size"),
        "context": config.wanted or UNWRITTEN,
    }


def _write(shape: Shape) -> dict[str, Any]:
    model = shape.model
    return {
        "d_ff": model.hidden_width,
        "d_kv": model.head_width,
        "d_model": model.width,
        "dropout_rate": model.dropout,
        "feed_forward_proj": "gated-gelu" if model.gated else "relu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": model.norm_eps,
        "num_decoder_layers": model.all_layers - model.layers,
        "num_heads": model.heads,
        "num_layers": model.layers,
        "relative_attention_max_distance": model.furthest_distance,
        "relative_attention_num_buckets": model.distance_buckets,
        "tie_word_embeddings": model.tied_head,
        "vocab_size": shape.vocabulary,
    }


def _weights(shape: Shape) -> Iterator[Weight]:
    model, width, inner = shape.model, shape.model.width, shape.model.heads * shape.model.head_width
    yield same("embed.weight", "shared.weight", shape.vocabulary, width)
    for ours, theirs in (("source", "encoder"), ("target", "decoder")):
        name = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield same(f"{ours}_distances.weight", name, model.distance_buckets, model.heads)
    for layer in range(model.all_layers):
        reads = layer < model.layers
        ours = f"blocks.{layer}"
        theirs = f"encoder.block.{layer}" if reads else f"decoder.block.{layer - model.layers}"
        rows = {f"{theirs}.layer.0.SelfAttention.{name}.weight": inner for name in ("q", "k", "v")}
        yield stacked(f"{ours}.attention.qkv.weight", rows, width)
        yield same(f"{ours}.attention.out.weight", f"{theirs}.layer.0.SelfAttention.o.weight", width, inner)
        yield same(f"{ours}.norm1.weight", f"{theirs}.layer.0.layer_norm.weight", width)
        if not reads:
            across = f"{theirs}.layer.1.EncDecAttention"
            yield same(f"{ours}.norm3.weight", f"{theirs}.layer.1.layer_norm.weight", width)
            yield same(f"{ours}.cross.q.weight", f"{across}.q.weight", inner, width)
            yield stacked(f"{ours}.cross.kv.weight", {f"{across}.k.weight": inner, f"{across}.v.weight": inner}, width)
            yield same(f"{ours}.cross.out.weight", f"{across}.o.weight", width, inner)
        elif layer == model.layers - 1:
            yield same(f"{ours}.norm3.weight", "encoder.final_layer_norm.weight", width)
        yield from _mlp(shape, ours, f"{theirs}.layer.{1 if reads else 2}")
    yield same("norm.weight", "decoder.final_layer_norm.weight", width)
    if not model.tied_head:
        yield same("head.weight", "lm_head.weight", shape.vocabulary, width)


def _mlp(shape: Shape, ours: str, theirs: str) -> Iterator[Weight]:
    model, width, hidden = shape.model, shape.model.width, shape.model.hidden_width
    there = f"{theirs}.DenseReluDense"
    yield same(f"{ours}.norm2.weight", f"{theirs}.layer_norm.weight", width)
    if model.gated:
        yield stacked(f"{ours}.mlp.gate_up.weight", {f"{there}.wi_0.weight": hidden, f"{there}.wi_1.weight": hidden}, width)
    else:
        yield same(f"{ours}.mlp.up.weight", f"{there}.wi.weight", hidden, width)
    yield same(f"{ours}.mlp.down.weight", f"{there}.wo.weight", width, hidden)


T5 = Dialect(
    "t5",
    "T5ForConditionalGeneration",
    _read,
    _write,
    _weights,
    unused=(
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
    copies={"lm_head.weight": "shared.weight"},
)
