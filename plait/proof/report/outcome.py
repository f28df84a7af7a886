"""The table of what each variant came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from plait.proof import amounts
from plait.proof.comparison import Comparison, Result
from plait.proof.report.looks import DASH, key, what
from plait.proof.report.markup import text


@dataclass(frozen=True)
class Column:
    """name: the figure's. against: what stands in small letters beneath, a ratio to the reference or a difference from it.
    best: the least or the most, or nothing that a run could be best at."""

    title: str
    name: str
    show: Callable[[float], str]
    against: str = ""
    best: Callable[[Iterable[float]], float] | None = min


def _columns() -> list[Column]:
    return [
        Column("time", "seconds", amounts.seconds, "ratio"),
        Column("tokens/s", "tokens_per_s", amounts.number, "", max),
        Column("sent", "sent", amounts.size, "ratio"),
        Column("waiting", "waited_share", amounts.percent),
        Column("training loss", "train_loss", amounts.loss, "difference"),
        Column("validation loss", "loss", amounts.loss, "difference"),
        Column("perplexity", "perplexity", amounts.perplexity, "difference"),
        Column("accuracy", "accuracy", amounts.accuracy, "points", max),
    ]


def outcome(comparison: Comparison) -> str:
    columns, results = _columns(), comparison.results
    heads = "".join(f'<th scope="col">{text(column.title)}</th>' for column in columns)
    best = {column.name: _best(column, results) for column in columns}
    rows = "".join(_outcome_row(result, columns, best, comparison) for result in results)
    spread = " ± is the deviation over seeds." if comparison.seeds > 1 else " One seed: how much chance alone would change is not known."
    return (
        f'<section><h2>Outcome</h2><div class="scroll"><table><thead><tr><th scope="col">{what(comparison)}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note"><b class="best">Best</b> of each column; beneath, against {text(comparison.reference.variant.name)}.{spread} '
        "Time is the clock's, for the whole budget. Sent: bytes, all replicas. Waiting: the share of replicas' time spent on communication "
        "that computing did not hide. Training loss: the mean of the last 5% of steps. Validation loss and the accuracy of the next token: "
        "the final model, on the same sequences for all.</p></section>"
    )


def _best(column: Column, results: Sequence[Result]) -> float | None:
    """By what is shown: figures that look alike are all best. None where all do, and nothing is."""
    known = [result.numbers[column.name].mean for result in results if column.name in result.numbers]
    shown = {column.show(value) for value in known}
    return None if column.best is None or len(shown) < 2 else column.best(known)


def _outcome_row(result: Result, columns: Sequence[Column], best: dict[str, float | None], comparison: Comparison) -> str:
    name = f'<th scope="row">{key(result, comparison)}{text(result.variant.name)}</th>'
    if result.why is not None:
        return f'<tr>{name}<td class="failed" colspan="{len(columns)}">did not end: {text(result.why)}</td></tr>'
    is_reference = result is comparison.reference
    return f"<tr>{name}{''.join(_cell(result, column, best[column.name], is_reference) for column in columns)}</tr>"


def _cell(result: Result, column: Column, best: float | None, is_reference: bool) -> str:
    spread = result.numbers.get(column.name)
    if spread is None:
        return f"<td>{DASH}</td>"
    shown = text(column.show(spread.mean))
    shown = f'<b class="best">{shown}</b>' if best is not None and column.show(best) == column.show(spread.mean) else shown
    beneath = "" if is_reference else _against(result, column)
    beneath = beneath or (f"± {column.show(spread.deviation)}" if spread.deviation is not None and not column.against else "")
    if is_reference:
        beneath = f"± {column.show(spread.deviation)}" if spread.deviation is not None else "reference" if column.against else ""
    return f"<td>{shown}<small>{text(beneath)}</small></td>"


def _against(result: Result, column: Column) -> str:
    if column.against == "ratio" and column.name in result.ratios:
        return amounts.ratio(result.ratios[column.name])
    if column.against in ("difference", "points") and column.name in result.differences:
        scale, decimals = (100, 2) if column.against == "points" else (1, 4)
        return amounts.difference(result.differences[column.name], scale, 2 if column.name == "perplexity" else decimals)
    return ""
