"""A contender: transformers' Trainer on GPT2LMHeadModel, with nothing on that is not training."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from contest import Ticker
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import plait
from plait import spec
from plait.data.batches import Batches

HELD = 64
"""Batches held in memory, over and over."""


def main(run_file: str, threads: int, ticks: str) -> None:
    run = spec.load(run_file)
    torch.set_num_threads(threads)
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    batch = run.train.largest_batch
    held = [torch.from_numpy(row) for step in range(1, HELD + 1) for row in batches.read(step, 0, batch).tokens_BL]
    rows = Rows([{"input_ids": row, "labels": row} for row in held])
    model = GPT2LMHeadModel(_config(run, prepared.vocabulary))
    expected = sum(parameter.numel() for parameter in model.parameters())
    print(f"{expected} parameters")
    with tempfile.TemporaryDirectory() as folder:
        ticking = Ticking(ticks, batch * run.data.sequence)
        Trainer(model, arguments(run, folder, batch), train_dataset=rows, callbacks=[ticking]).train()


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """What a model takes of each row, in memory, as often as asked for."""

    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index % len(self._rows)]


class Ticking(TrainerCallback):
    """Ticks after each step."""

    def __init__(self, path: str, tokens: int) -> None:
        self._tick = Ticker(path)
        self._tokens = tokens

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._tick(self._tokens)


def _config(run: spec.Run, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=run.data.sequence,
        n_embd=run.model.width,
        n_layer=run.model.layers,
        n_head=run.model.heads,
        n_inner=run.model.hidden_width,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def arguments(run: spec.Run, folder: str, batch: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        max_steps=10**6,
        optim="adamw_torch_fused",
        learning_rate=1e-3,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        bf16=run.train.precision == "bf16",
        torch_compile=run.train.compile,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
