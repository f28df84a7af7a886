"""BERT: plait's encoder under its names at Hugging Face, those of BertForMaskedLM and of the models that have the head of a task.

What a checkpoint has besides, whether two sentences follow one another, and a pooler that nothing is told from, is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from plait import spec
from plait.errors import CheckpointError
from plait.model.huggingface.dialect import Config, Dialect, Shape, Weight, same, stacked

SEGMENTS = 2
SCALE = "plait"
"""Where a config keeps by what numbers are scaled, which transformers knows nothing of."""


def _reader(kind: str) -> Callable[[Config], dict[str, Any]]:
    return lambda config: {**_read(config), "objective": _objective(config, kind)}


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


def _objective(config: Config, kind: str) -> dict[str, Any]:
    """What the head tells; a single label is a number, as transformers has it."""
    if kind not in ("classify", "tag"):
        config.ignore("id2label", "label2id", "problem_type")
        return {"kind": kind}
    config.ignore("label2id")
    names = config.maybe("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if kind == "classify" and len(names) == 1:
        config.only("problem_type", "regression")
        scale = (config.maybe("task_specific_params") or {}).get(SCALE) or {}
        return {"kind": "regress", "scale": [float(scale.get("mean", 0.0)), float(scale.get("deviation", 1.0))]}
    config.only("problem_type", "single_label_classification")
    return {"kind": kind, "labels": [str(names[str(number)]) for number in range(len(names))]}


def _writer(objective: spec.Objective) -> dict[str, Any]:
    """What a config says of the head of a task."""
    if objective.kind == "regress":
        mean, deviation = objective.scale or (0.0, 1.0)
        numbers = {"task_specific_params": {SCALE: {"mean": mean, "deviation": deviation}}}
        return {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression", **numbers}
    if objective.labels is None:
        return {}
    names = {"id2label": dict(enumerate(objective.labels)), "label2id": {name: number for number, name in enumerate(objective.labels)}}
    return names | ({"problem_type": "single_label_classification"} if objective.kind == "classify" else {})


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
        **_writer(shape.objective),
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
    yield from _of_head(shape)


def _of_head(shape: Shape) -> Iterator[Weight]:
    width, head = shape.model.width, shape.objective.head
    if head is not None:
        if head.pooled:
            yield from _both("pooler", "bert.pooler.dense", width, width)
        yield from _both("task_head", "qa_outputs" if head.kind == "answer" else "classifier", head.outputs, width)
        return
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
        ("model.tied = false", not model.tied_head and shape.objective.head is None),
        ('model.pooling = "mean"', model.pooling == "mean"),
    ):
        if wrong:
            raise CheckpointError(f'{name}: a BERT at Hugging Face is without it; model.family = "bert" alone is one')


def _dialect(kind: str, architecture: str, *unused: str) -> Dialect:
    renamed = {".gamma": ".weight", ".beta": ".bias"}
    return Dialect("bert", architecture, _reader(kind), _write, _weights, "bert.", ("*.position_ids", *unused), renamed)


_CLASSIFIER = _dialect("classify", "BertForSequenceClassification")
BERTS = {
    "masked": _dialect("masked", "BertForMaskedLM", "bert.pooler.*", "cls.seq_relationship.*", "cls.predictions.decoder.*"),
    "classify": _CLASSIFIER,
    "regress": _CLASSIFIER,
    "tag": _dialect("tag", "BertForTokenClassification", "bert.pooler.*"),
    "answer": _dialect("answer", "BertForQuestionAnswering", "bert.pooler.*"),
}
"""By what is told."""
