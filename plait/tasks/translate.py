"""Translation by a trained model: an encoder-decoder by beam search, a decoder in a conversation.

lines ─ prefix of the pair ─ tokens ─┬─ as they are, or as the policy for what is longer than a row says ─ beams ─ lines
                                     └─ "cut": the beginning; "skip": an empty line; "fail": an error that names the line
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plait import spec
from plait.data import vocabulary
from plait.data.tokens import names_of
from plait.errors import UserError
from plait.model.seq2seq import Seq2Seq
from plait.tasks.beam import BATCH, Beams, search, text_of
from plait.tasks.generate import Sampling, generate
from plait.tasks.trained import Trained, load
from plait.train.folder import read_about

Longer = Literal["cut", "skip", "fail"]
OnDone = Callable[[int], None]


@dataclass
class Translator:
    """A trained model that translates. prefix: what is read before each source. longer: lines so far that were longer than a row."""

    trained: Trained
    prefix: str = ""
    settings: Beams = field(default_factory=Beams)
    batch: int = BATCH
    policy: Longer = "cut"
    longer: int = 0

    def translate(self, lines: Sequence[str], done: OnDone = lambda count: None, first: int = 1) -> list[str]:
        """A translation for each line; of an empty one nothing. done: how many are. first: the number of the first line, for messages.
        Raises UserError: a line that is too long, where the policy says so."""
        wanted = [number for number, line in enumerate(lines) if line.strip()]
        write = self._by_beams if isinstance(self.trained.module, Seq2Seq) else self._in_conversations
        found = dict(
            zip(wanted, write([self.prefix + lines[number].strip() for number in wanted], [first + n for n in wanted], done), strict=True)
        )
        return [found.get(number, "") for number in range(len(lines))]

    def _by_beams(self, sources: list[str], numbers: list[int], done: OnDone) -> list[str]:
        assert isinstance(self.trained.module, Seq2Seq)
        tokenizer = self.trained.tokenizer
        encoded = [self._fitting(ids.tolist(), number) for ids, number in zip(tokenizer.encode(sources), numbers, strict=True)]
        kept = [[*ids, tokenizer.end_of_text] for ids in encoded if ids is not None]
        begin, end = vocabulary.begin(tokenizer), tokenizer.end_of_text
        found = iter(search(self.trained.module, kept, begin, end, self.settings, self.batch, done))
        return ["" if ids is None else text_of(tokenizer, next(found)).strip() for ids in encoded]

    def _fitting(self, ids: list[int], number: int) -> list[int] | None:
        """As many tokens as were read in training, or none."""
        most = self.trained.run.data.sequence - 1
        if len(ids) <= most:
            return ids
        if self.policy == "fail":
            raise UserError(
                f"line {number}: its {len(ids)} tokens are more than the {most} of a source; shorten it, or use --longer cut or skip"
            )
        self.longer += 1
        return ids[:most] if self.policy == "cut" else None

    def _in_conversations(self, sources: list[str], numbers: list[int], done: OnDone) -> list[str]:
        template = self.trained.template
        sampling = self.trained.answering(Sampling(tokens=self.settings.tokens, temperature=0))
        system = self.trained.run.data.chat.system if self.trained.run.data.chat else None
        before = [] if system is None else [{"role": "system", "content": system}]
        prompts = [template.prompt([*before, {"role": "user", "content": source}]) for source in sources]
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch):
            completed = generate(self.trained.module, self.trained.tokenizer, prompts[start : start + self.batch], sampling)
            texts += [completion.text.strip() for completion in completed]
            done(len(texts))
        return texts


def load_translator(
    folder: str | Path,
    *,
    pair: str | None = None,
    prefix: str | None = None,
    beams: int | None = None,
    length_penalty: float = 1.0,
    tokens: int = 200,
    batch: int = BATCH,
    longer: Longer = "cut",
    device: spec.Device = "auto",
) -> Translator:
    """The newest checkpoint of a run's folder. pair: the name of the source whose prefix is meant; prefix: another one. beams: 4 when left
    out, of an encoder-decoder. tokens: most of a translation. batch: lines at once.

    Raises UserError: a model that is no translator, a pair that it does not know, beams for a decoder.
    """
    trained = load(folder, device)
    _check(trained)
    if beams is not None and beams > 1 and trained.run.model.causal:
        raise UserError(f'--beams {beams} is for an encoder-decoder, and model.family = "{trained.run.model.family}"; leave it out')
    chosen = _prefix(trained.run, pair) if prefix is None else prefix
    return Translator(trained, chosen, Beams(beams or Beams.beams, length_penalty, tokens), batch, longer)


def prefixes(data: spec.Data) -> dict[str, str]:
    """What is read before the sources of each pair, by the pair's name."""
    told = {entry.name or entry.path: entry.prefix or "" for entry in data.corpus if isinstance(entry, spec.Source)}
    return {name: told.get(name, "") for name in names_of(data)}


def _check(trained: Trained) -> None:
    run = trained.run
    imported = str(read_about(trained.folder)["identity"]["data.fingerprint"]).startswith("imported ")
    if run.data.translates or (run.model.family == "t5" and imported):
        return
    encoder = run.model.family == "bert"
    tuned = f'with kind = "translate", from it perhaps: [finetune] from = "{trained.folder}"'
    right = 'a "t5" with kind = "translate"' if encoder else tuned
    raise UserError(
        f'{trained.folder}: is no translator: model.family = "{run.model.family}" has learned data.objective.kind = '
        f'"{run.data.objective.kind}"; train {right}'
    )


def _prefix(run: spec.Run, pair: str | None) -> str:
    known = prefixes(run.data)
    if pair is not None and pair not in known:
        raise UserError(f"--pair {pair}: is none of {', '.join(known)}")
    if pair is None and len(set(known.values())) > 1:
        raise UserError(f"this model translates several pairs: choose one with --pair: {', '.join(known)}")
    return next(iter(known.values())) if pair is None else known[pair]
