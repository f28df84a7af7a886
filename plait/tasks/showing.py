"""What commands show a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.data.batches import EvaluationBatches
from plait.data.pairs import Filling
from plait.data.prepare import Progress
from plait.data.splits import SPLITS
from plait.data.tokens import Prepared
from plait.errors import UserError
from plait.tasks.using import command
from plait.train.folder import read_run

if TYPE_CHECKING:
    from plait.cluster.doctor import Finding
    from plait.data.scoring import Scores
    from plait.tasks.answer import Answered, Answers
    from plait.tasks.baselines import Baseline
    from plait.tasks.beam import Beams
    from plait.tasks.evaluate import Score
    from plait.tasks.generate import Sampling
    from plait.tasks.pretrain import Result
    from plait.tasks.rivals import Compared
    from plait.tasks.trained import Trained
    from plait.tasks.weighing import Weighed
    from plait.train.inventory import Held


class PreparingBar:
    """Progress of preparing: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, progress: Progress) -> None:
        if sys.stderr.isatty():
            self._show_bar(progress)
        elif progress.stage != self._stage:
            print(f"preparing: {progress.stage}", file=sys.stderr)
        self._stage = progress.stage

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show_bar(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(TextColumn("preparing: {task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
        if progress.stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(progress.stage, total=max(1, progress.total_bytes))
        self._bar.update(self._task, completed=progress.done_bytes)


def prepared_lines(prepared: Prepared) -> str:
    """What `plait data prepare` prints."""
    lines = [f"{prepared.folder}  vocabulary {prepared.vocabulary:,}  {prepared.bytes_per_token():.2f} bytes a token"]
    lines += [f"  {split:<10} {prepared.tokens(split):>14,} tokens in {prepared.documents(split):,} documents" for split in SPLITS]
    if prepared.tokens("train"):
        lines.append(f"  unigram entropy {prepared.unigram_entropy():.4f} nats a token: what a model must beat")
    return "\n".join(lines + _left_out(prepared) + [f"  {filling}" for filling in _fillings(prepared)])


def _fillings(prepared: Prepared) -> list[Filling]:
    """How full the training split's rows of pairs are, by source; empty of other documents."""
    if prepared.data is None or not prepared.data.translates or not prepared.tokens("train"):
        return []
    return EvaluationBatches(prepared.split("train", prepared.data.sequence)).filling


def _left_out(prepared: Prepared) -> list[str]:
    """What of the corpus is not in the token files, and why."""
    lineage = prepared.manifest.lineage
    if lineage is None:
        return []
    dropped = [(step.name, step.documents) for step in lineage.steps if step.kind == "drops" and step.documents]
    lines = (
        [f"  dropped {sum(count for _, count in dropped):,} of {lineage.steps[0].documents:,} documents: {_counted(dropped)}"]
        if dropped
        else []
    )
    if lineage.broken:
        lines.append(f"  could not be used: {_counted(lineage.broken.items())}")
        lines += [f"    {message}" for message in lineage.first_broken.values()]
    return lines


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts, key=lambda each: -each[1]))


def conclusion(result: Result) -> str:
    """The last lines of a training."""
    lines = [f"{result.folder}: {result.step} steps done"]
    if result.evaluated is not None:
        lines.append(f"validation loss {result.evaluated.loss:.4f} after step {result.evaluated.step}")
    lines.append(f"next: {command(read_run(result.folder), result.folder) or f'plait evaluate {result.folder}'}")
    return "\n".join(lines)


def print_scores(scores: list[Score], beside: list[Baseline], as_json: bool) -> None:
    """Lines of one split, a table of several, JSON; and what each is printed beside."""
    if as_json:
        for score in scores:
            told = [asdict(each) for each in beside if each.split == score.split]
            print(json.dumps(score.as_dict() | ({"baselines": told} if told else {})))
        return
    if len(scores) == 1:
        print(score_lines(scores[0]))
    else:
        scores_table(scores)
    for score in scores:
        translations_table(score.translations, score.split)
    for each in beside:
        print(f"  {each.split} by {each.name}: accuracy {each.accuracy:.1%}  macro F1 {each.f1:.1%}")


def score_lines(score: Score) -> str:
    told, unit = [f"loss {score.loss:.4f}"], "tokens"
    if score.error is not None:
        told, unit = [*told, f"root mean squared error {score.error:.4g}"], "rows"
    elif score.labels is not None:
        told, unit = [*told, f"accuracy {score.accuracy:.1%}", f"macro F1 {score.f1:.1%}"], "labels"
    else:
        told += [f"perplexity {score.perplexity:.2f}", f"accuracy {score.accuracy:.1%}"]
    lines = [f"{score.split} after step {score.step}: {'  '.join(told)}  over {score.tokens:,} {unit}"]
    if score.labels is not None and score.f1_of_labels is not None:
        lines.append("  F1 of " + "  ".join(f"{label} {f1:.1%}" for label, f1 in zip(score.labels, score.f1_of_labels, strict=True)))
    if score.unigram_entropy is not None:
        first = {"labels": "the labels' frequencies", "rows": "the mean"}.get(unit, "unigram entropy")
        better = f"{score.unigram_entropy - score.loss:+.4f}" + (f" nats a {unit[:-1]}" if unit != "rows" else "")
        lines.append(f"{first} {score.unigram_entropy:.4f}: the model is {better} better")
    return "\n".join(lines)


def translations_table(compared: list[Compared], split: str) -> None:
    """BLEU and chrF by pair of languages, beside those of copying and of the nearest source."""
    from rich.console import Console

    for each in compared:
        rivals = {"the model": each.model, "copying the source": each.copied, "nearest training source's target": each.nearest}
        _scores_of_translations(f"{each.sentences:,} sentences of {split}, {each.pair}", rivals)
        Console().print(each.signature, highlight=False, soft_wrap=True)


def against_table(sentences: int, model: Scores, copied: Scores, signature: str) -> None:
    """The same of a file, on standard error, beside the translations."""
    from rich.console import Console

    _scores_of_translations(f"{sentences:,} lines", {"the model": model, "copying the source": copied}, stderr=True)
    Console(stderr=True).print(signature, highlight=False, soft_wrap=True)


def _scores_of_translations(title: str, rivals: dict[str, Scores], stderr: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in (title, "BLEU", "chrF"):
        table.add_column(name, justify="left" if name == title else "right")
    for name, scores in rivals.items():
        table.add_row(name, f"{scores.bleu:.1f}", f"{scores.chrf:.1f}")
    Console(stderr=stderr).print(table)


def scores_table(scores: list[Score]) -> None:
    """Several splits, a row each."""
    from rich.console import Console
    from rich.table import Table

    of_labels = scores[0].labels is not None
    table = Table(box=None, pad_edge=False)
    third = "macro F1" if of_labels else "error" if scores[0].error is not None else "perplexity"
    first = "frequencies" if of_labels else "mean" if scores[0].error is not None else "unigram entropy"
    for title in (f"step {scores[0].step}", "loss", first, third, "accuracy", "targets" if of_labels else "tokens"):
        table.add_column(title, justify="left" if title.startswith("step") else "right")
    for score in scores:
        figure = f"{score.f1:.1%}" if of_labels else f"{score.perplexity:.2f}" if score.error is None else f"{score.error:.4g}"
        figures = (
            f"{score.loss:.4f}",
            "" if score.unigram_entropy is None else f"{score.unigram_entropy:.4f}",
            figure,
            "" if score.accuracy is None else f"{score.accuracy:.1%}",
            f"{score.tokens:,}",
        )
        table.add_row(score.split, *figures)
    Console().print(table)


def write_by_beams(trained: Trained, sources: list[str], beams: Beams) -> None:
    """What an encoder-decoder writes from each source, a line each."""
    from plait.model.seq2seq import Seq2Seq
    from plait.tasks.beam import write

    if not isinstance(trained.module, Seq2Seq):
        raise UserError(
            f'--beams and --length-penalty are for an encoder-decoder, and model.family = "{trained.run.model.family}"; leave them out'
        )
    for text in write(trained.module, trained.tokenizer, sources, beams):
        print(text)


def stream(trained: Trained, prompts: list[str], sampling: Sampling) -> None:
    """Write what a model generates: as it comes for one prompt, each after the other for several."""
    from plait.tasks.generate import generate

    def write(_: int, text: str) -> None:
        print(text, end="", flush=True)

    alone = len(prompts) == 1
    if alone:
        print(prompts[0], end="", flush=True)
    completions = generate(trained.module, trained.tokenizer, prompts, sampling, write if alone else None)
    if alone:
        print()
    for prompt, completion in () if alone else zip(prompts, completions, strict=True):
        print(f"--- {prompt}\n{prompt}{completion.text}")


def checkpoint_line(held: Held, checked: bool) -> str:
    """checked: whether every byte was read."""
    state = f"DAMAGED: {held.wrong}" if held.wrong is not None else "sound" if checked else "complete"
    return f"step {held.step:<9,} {held.bytes / 2**20:>10,.1f} MiB  {held.place}  {state}"


def weighed_table(models: list[Weighed]) -> None:
    """Models side by side, a row each; reads and writes are tokens/s."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model", "step", "MiB", "parameters", "zeros", "reads/s", "writes/s", "loss"):
        table.add_column(title, justify="left" if title == "model" else "right", overflow="fold")
    for each in models:
        figures = (f"{each.step:,}", f"{each.bytes / 2**20:,.2f}", f"{each.parameters:,}", f"{each.zeros:.1%}")
        speeds = ("-" if speed is None else f"{speed:,.0f}" for speed in (each.reads, each.writes))
        table.add_row(each.folder, *figures, *speeds, "-" if each.loss is None else f"{each.loss:.4f}")
    Console().print(table)


def answers_table(answers: Answers) -> None:
    """Exact match and F1, beside those of one answer to everything."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in (f"{answers.questions} questions, step {answers.step}", "exact match", "F1"):
        table.add_column(title, justify="left" if "questions" in title else "right")
    table.add_row("the model", f"{answers.exact:.1%}", f"{answers.f1:.1%}")
    table.add_row("always the commonest answer", f"{answers.baseline_exact:.1%}", f"{answers.baseline_f1:.1%}")
    Console().print(table)


def write_lines(path: Path, answered: list[Answered]) -> None:
    """One JSON object a line. Raises UserError."""
    try:
        path.write_text("".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in answered), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror}") from None


def status_table(status: dict[str, Any]) -> None:
    """How a run is doing: a line for the run, and one for each worker."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    numbers = [f"step {status['step']}" + (f" of {status['steps']}" if status["steps"] else "")]
    numbers += [f"loss {status['loss']:.4f}"] if status["loss"] is not None else []
    numbers += [f"{status['tokens_per_s']:,.0f} tokens/s"] if status["tokens_per_s"] is not None else []
    numbers += [f"saved at step {status['saved']}"] if status["saved"] is not None else []
    table = Table(box=None, pad_edge=False)
    for title in ("worker", "host", "pid", "state", "step", "samples/s", "doing"):
        table.add_column(title, overflow="fold")
    for worker in status["workers"]:
        name = f"replica {worker['replica']} rank {worker['rank']}" if worker["replica"] >= 0 else f"server {worker['rank']}"
        speed = "" if worker["samples_per_s"] is None else f"{worker['samples_per_s']:.3g}"
        doing = worker["doing"] + (f", for {worker['seconds']:.0f} s" if worker["seconds"] >= 1 else "")
        table.add_row(*map(escape, (name, worker["host"], str(worker["pid"]), worker["state"], str(worker["step"]), speed, doing)))
    console = Console()
    console.print(f"{status['state']}, generation {status['generation']}: {', '.join(numbers)}", highlight=False)
    console.print(table)


def findings_table(findings: list[Finding]) -> None:
    """The doctor's table: what works, what works with limits, what does not."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "limited": "[yellow]limited[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "found", "meaning"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.state], *map(escape, (finding.topic, finding.found, finding.meaning)))
    Console().print(table)
