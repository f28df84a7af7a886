"""A contender: transformers' Trainer on BertForSequenceClassification, with nothing on that is not training."""

from __future__ import annotations

import json
import sys
import tempfile

import torch
from trainer import HELD, Ticking, arguments
from transformers import BertConfig, BertForSequenceClassification, Trainer

import plait
from plait import spec
from plait.data.batches import Batches


def main(run_file: str, threads: int, ticks: str) -> None:
    run = spec.load(run_file)
    torch.set_num_threads(threads)
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    batch, labels = run.train.largest_batch, len(prepared.objective().labels or ())
    model = BertForSequenceClassification(_config(run, prepared.vocabulary, labels))
    with tempfile.TemporaryDirectory() as folder:
        rows = Labelled(batches, batch)
        Trainer(model, arguments(run, folder, batch), train_dataset=rows, callbacks=[Ticking(ticks, batch)]).train()


class Labelled(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The first batches' rows in memory, as often as asked for."""

    def __init__(self, batches: Batches, batch: int) -> None:
        read = [batches.read(step, 0, batch) for step in range(1, HELD + 1)]
        self._rows = [
            {
                "input_ids": torch.from_numpy(each.tokens_BL[row]),
                "attention_mask": torch.ones(each.tokens_BL.shape[1], dtype=torch.int64)
                if each.documents_BL is None
                else torch.from_numpy(each.documents_BL[row] + 1),
                "labels": torch.tensor(int(each.targets_BL[row, 0])),
            }
            for each in read
            for row in range(batch)
        ]

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index % len(self._rows)]


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
