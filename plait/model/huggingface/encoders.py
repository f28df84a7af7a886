"""BERT: plait's encoder under its names at Hugging Face, those of BertForMaskedLM.

What a checkpoint has besides, a pooler and whether two sentences follow one another, no masked token is told from; it is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plait.errors import CheckpointError
from plait.model.huggingface.dialect import Config, Dialect, Shape, Weight, same, stacked

SEGMENTS = 2


def _read(config: Config) -> dict[str, Any]:
    config.only("hidden_act", "gelu")
    config.only("position_embedding_type", "absolute")
    config.only("type_vocab_size", SEGMENTS)
    config.only("tie_word_embeddings", True)
    config.only("is_decoder", False)
    config.only("add_cross_attention", False)
    config.ignore("classifier_dropout", "pooler_*", "directionality")
    return {
        "family": "bert",
        "layers": config.take("num_hidden_layers"),
        "width": config.take("hidden_size"),
        "heads": config.take("num_attention_heads"),
        "hidden": config.take("intermediate_size"),
        "dropout": config.rates("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "norm_eps": config.take("layer_norm_eps", 1e-12),
        "vocabulary": config.take("vocab_size"),
        "context": config.context("max_position_embeddings"),
    }


def _write(shape: Shape) -> dict[str, Any]:
    model = shape.model
    return {
        "attention_probs_dropout_prob": model.dropout,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.dropout,
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "layer_norm_eps": model.norm_eps,
        "max_position_embeddings": shape.context,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "tie_word_embeddings": True,
        "type_vocab_size": SEGMENTS,
        "vocab_size": shape.vocabulary,
    }


def _weights(shape: Shape) -> Iterator[Weight]:
    model, width, hidden = shape.model, shape.model.width, shape.model.hidden_width
    there = "bert.embeddings"
    yield same("embed.weight", f"{there}.word_embeddings.weight", shape.vocabulary, width)
    yield same("positions.weight", f"{there}.position_embeddings.weight", shape.context, width)
    yield same("segments.weight", f"{there}.token_type_embeddings.weight", SEGMENTS, width)
    yield from _both("embed_norm", f"{there}.LayerNorm", width)
    for layer in range(model.layers):
        ours, theirs = f"blocks.{layer}", f"bert.encoder.layer.{layer}"
        rows = {f"{theirs}.attention.self.{name}": width for name in ("query", "key", "value")}
        yield stacked(f"{ours}.attention.qkv.weight", {f"{name}.weight": size for name, size in rows.items()}, width)
        yield stacked(f"{ours}.attention.qkv.bias", {f"{name}.bias": size for name, size in rows.items()})
        yield from _both(f"{ours}.attention.out", f"{theirs}.attention.output.dense", width, width)
        yield from _both(f"{ours}.norm1", f"{theirs}.attention.output.LayerNorm", width)
        yield from _both(f"{ours}.mlp.up", f"{theirs}.intermediate.dense", hidden, width)
        yield from _both(f"{ours}.mlp.down", f"{theirs}.output.dense", width, hidden)
        yield from _both(f"{ours}.norm2", f"{theirs}.output.LayerNorm", width)
    yield from _both("transform", "cls.predictions.transform.dense", width, width)
    yield from _both("norm", "cls.predictions.transform.LayerNorm", width)
    yield same("head.bias", "cls.predictions.bias", shape.vocabulary)


def _both(path: str, name: str, *shape: int) -> Iterator[Weight]:
    """A weight, and a bias for each of its rows."""
    yield same(f"{path}.weight", f"{name}.weight", *shape)
    yield same(f"{path}.bias", f"{name}.bias", shape[0])


def check(shape: Shape) -> None:
    """Raises CheckpointError naming what BERT has not there."""
    model = shape.model
    for name, wrong in (
        (f"model.kv_heads = {model.kv_heads}", model.key_value_heads != model.heads),
        (f"model.head_size = {model.head_size}", model.head_width * model.heads != model.width),
        (f"model.qk_norm = {model.qk_norm}, model.qkv_bias = {model.biased_qkv}", model.qk_norm or not model.biased_qkv),
        ("model.tied = false", not model.tied_head),
    ):
        if wrong:
            raise CheckpointError(f'{name}: a BERT at Hugging Face is without it; model.family = "bert" alone is one')


BERT = Dialect(
    "bert",
    "BertForMaskedLM",
    _read,
    _write,
    _weights,
    "bert.",
    ("bert.pooler.*", "cls.seq_relationship.*", "cls.predictions.decoder.*", "*.position_ids"),
    {".gamma": ".weight", ".beta": ".bias"},
)
