"""plait's models in EleutherAI's lm-evaluation-harness: `plait lm-eval --model plait --model_args path=DIR --tasks ...`.

The harness finds models by name among its own alone, so that somebody has to have imported this file before: the command does, and so may a
script that calls `lm_eval.simple_evaluate`. Needs the extra "harness".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from plait import spec
from plait.errors import UserError
from plait.tasks.generate import Sampling, generate
from plait.tasks.trained import load

Pair = tuple[list[int], list[int]]
"""Tokens that are given, and those that are told from them."""


@register_model("plait")
class PlaitLM(TemplateLM):
    """The newest checkpoint of a run's folder. A text begins with end_of_text, as each that the model was trained on."""

    def __init__(self, path: str, device: str | None = None, batch_size: int | str = 16, **others: Any) -> None:
        super().__init__()
        others.pop("max_batch_size", None)
        if others:
            raise UserError(f"--model_args {', '.join(others)}: plait takes path alone")
        if not str(batch_size).isdecimal():
            raise UserError(f"--batch_size {batch_size}: must be a number")
        self.trained = load(path, spec.Cluster(device=cast(spec.Device, device or "auto")).device)
        self.batch_size = int(batch_size)
        self.max_length = int(getattr(self.trained.module, "context", self.trained.run.data.sequence))
        self._path = path

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return cast(list[int], self.trained.tokenizer.encode([string])[0].tolist())

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return self._told([(given, told) for _, given, told in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A text longer than the context is told in windows, each token once."""
        sums = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            sums.append(sum(likelihood for likelihood, _ in self._told([utils.make_disjoint_window(window) for window in windows], False)))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Requests of equal settings are written together."""
        written = [""] * len(requests)
        asked = [self._sampling(dict(request.args[1])) for request in requests]
        for settings in dict.fromkeys(asked):
            rows = [row for row, each in enumerate(asked) if each == settings]
            for first in range(0, len(rows), self.batch_size):
                some = rows[first : first + self.batch_size]
                prompts = [self._prompt(requests[row].args[0], settings.tokens) for row in some]
                for row, completion in zip(some, generate(self.trained.module, self.trained.tokenizer, prompts, settings), strict=True):
                    written[row] = completion.text
        return written

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.trained.template.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.trained.template.source if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return self._path

    def _prompt(self, text: str, tokens: int) -> list[int]:
        """The end of a prompt that leaves no room for so many tokens."""
        ids = self.tok_encode(text)
        return [self.eot_token_id, *ids[-max(1, self.max_length - tokens - 1) :]]

    def _sampling(self, asked: dict[str, Any]) -> Sampling:
        until = asked.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        tokens = min(int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or 256), self.max_length - 1)
        temperature = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
        return Sampling(tokens, temperature, stop=tuple(filter(None, stop)), ends=self.trained.ends)

    @torch.inference_mode()
    def _told(self, pairs: Sequence[Pair], begins: bool = True) -> list[tuple[float, bool]]:
        """Of each pair the logarithm of the probability, and whether greedy writing would say the same. begins: a text does."""
        told: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number][0]) - len(pairs[number][1]))
        for first in range(0, len(order), self.batch_size):
            some = order[first : first + self.batch_size]
            rows = [self._row(*pairs[number], begins) for number in some]
            tokens_BL = pad_sequence([torch.tensor(row[:-1]) for row in rows], batch_first=True).to(self.trained.compute.device)
            logits_BLV = self.trained.module(tokens_BL).float()
            for number, row, logits_LV in zip(some, rows, logits_BLV, strict=True):
                told[number] = _likelihood(logits_LV[: len(row) - 1], row, len(pairs[number][1]))
        return [told[number] for number in range(len(pairs))]

    def _row(self, given: list[int], told: list[int], begins: bool) -> list[int]:
        """As many of the tokens as the context takes, the last ones."""
        start = [self.eot_token_id] if begins and given[:1] != [self.eot_token_id] else []
        return [*start, *given, *told][-(self.max_length + 1) :]


def main(arguments: list[str]) -> None:
    """The harness's own command line, with the model "plait" among its models."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


def _likelihood(logits_LV: torch.Tensor, row: list[int], count: int) -> tuple[float, bool]:
    targets_n = torch.tensor(row[-count:], device=logits_LV.device)
    logits_nV = logits_LV[-count:]
    loss = functional.cross_entropy(logits_nV, targets_n[-len(logits_nV) :], reduction="sum")
    return -float(loss), bool((logits_nV.argmax(-1) == targets_n[-len(logits_nV) :]).all())
