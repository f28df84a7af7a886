"""A contender: transformers' Trainer on BertForSequenceClassification, with nothing on that is not training."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from trainer import HELD, Rows, Ticking, arguments
from transformers import BertConfig, BertForSequenceClassification, Trainer

import plait
from plait import spec
from plait.data.batches import Batches, MicroBatch


def main(run_file: str, threads: int, ticks: str) -> None:
    run = spec.load(run_file)
    torch.set_num_threads(threads)
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    batch, labels = run.train.largest_batch, len(prepared.objective().labels or ())
    model = BertForSequenceClassification(_config(run, prepared.vocabulary, labels))
    rows = Rows([row for step in range(1, HELD + 1) for row in _rows(batches.read(step, 0, batch))])
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, arguments(run, folder, batch), train_dataset=rows, callbacks=[Ticking(ticks, batch)]).train()


def _rows(batch: MicroBatch) -> Iterator[dict[str, torch.Tensor]]:
    """As transformers takes them: what is padding is masked, and a row's label stands in its first place here."""
    for row, tokens_L in enumerate(batch.tokens_BL):
        real_L = np.ones_like(tokens_L) if batch.documents_BL is None else batch.documents_BL[row] + 1
        label = torch.tensor(int(batch.targets_BL[row, 0]))
        yield {"input_ids": torch.from_numpy(tokens_L), "attention_mask": torch.from_numpy(real_L), "labels": label}


def _config(run: spec.Run, vocabulary: int, labels: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=run.model.width,
        num_hidden_layers=run.model.layers,
        num_attention_heads=run.model.heads,
        intermediate_size=run.model.hidden_width,
        hidden_dropout_prob=run.model.dropout,
        attention_probs_dropout_prob=run.model.dropout,
        max_position_embeddings=run.data.sequence,
        num_labels=labels,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
