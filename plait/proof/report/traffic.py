"""What was sent, what was waited for, and how late pushes came."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plait.proof import amounts
from plait.proof.comparison import Comparison, Result
from plait.proof.figures import Figures
from plait.proof.report import plots
from plait.proof.report.looks import DASH, figure, key, looks, what
from plait.proof.report.markup import text
from plait.proof.report.plots import Bar, Look, Quantiles

_FEW = 4
"""Replicas of which each has a line of its own."""


def traffic(comparison: Comparison) -> str:
    known = [result for result in comparison.results if result.ended]
    look = looks(comparison)
    sent = [
        Bar(result.variant.name, look[result.variant.name], result.numbers["sent"].mean, _sent_label(result, comparison))
        for result in known
        if "sent" in result.numbers
    ]
    bytes_ = figure("Bytes sent, all replicas", plots.bars(sent, "sent", "bytes sent")) if sent else ""
    waits = [row for result in known for row in _waiting_rows(result, look[result.variant.name])]
    drawn = (
        plots.quantiles(waits, "waiting", "waiting for one agreement: disc p50, bar p95, ring longest", amounts.power_of_ten)
        if waits
        else ""
    )
    waiting = figure("Sync latency", drawn) if drawn else ""
    return (
        f"<section><h2>Communication</h2><div class='pair'>{bytes_}{waiting}</div>{_traffic_table(known, comparison)}"
        '<p class="note">Sync latency is what an agreement took that computing did not hide: a step, or of local steps a round; of a '
        "parameter server, all pushes of a step. Bandwidth: bytes sent by the seconds in which some were under way, "
        "the mean over replicas, "
        "and beside it the share of what the link was measured to carry before the first step. Hidden: the share of communication that "
        "computing hid. Slowest: how often each replica was the one that the others waited for.</p></section>"
    )


def _sent_label(result: Result, comparison: Comparison) -> str:
    sent = amounts.size(result.numbers["sent"].mean)
    return sent if result is comparison.reference or "sent" not in result.ratios else f"{sent}, {amounts.ratio(result.ratios['sent'])}"


def _waiting_rows(result: Result, look: Look) -> list[Quantiles]:
    """A row for each replica where there are few, else one for all; of several seeds the first."""
    figures = result.ended[0][0]
    by_replica = figures.waiting_by_replica
    if len(by_replica) > _FEW or not by_replica:
        rows = [("", figures.waiting)] if figures.waiting else []
    else:
        rows = [(f" {replica}", waiting) for replica, waiting in by_replica.items()]
    named = [(f"{result.variant.name}{replica}", wait) for replica, wait in rows if wait.longest > 0]
    return [Quantiles(name, look, wait.p50, wait.p95, wait.longest) for name, wait in named]


def _traffic_table(results: Sequence[Result], comparison: Comparison) -> str:
    heads = ["bytes/token", "communicating", "hidden", "bandwidth", "of the link", "p50", "p95", "longest", "slowest"]
    rows = "".join(
        f'<tr><th scope="row">{key(result, comparison)}{text(result.variant.name)}</th>'
        f"{''.join(f'<td>{text(cell)}</td>' for cell in _traffic_cells(result))}</tr>"
        for result in results
    )
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in heads)
    heads_ = f'<thead><tr><th scope="col">{what(comparison)}</th>{head}</tr></thead>'
    return f'<div class="scroll"><table>{heads_}<tbody>{rows}</tbody></table></div>'


def _traffic_cells(result: Result) -> list[str]:
    shown: list[tuple[str, Callable[[float], str]]] = [
        ("sent_per_token", amounts.number),
        ("communicating", amounts.seconds),
        ("overlapped", amounts.percent),
        ("bandwidth", amounts.rate),
        ("bandwidth_share", amounts.percent),
        ("wait_p50", amounts.milliseconds),
        ("wait_p95", amounts.milliseconds),
        ("wait_longest", amounts.milliseconds),
    ]
    cells = [show(result.numbers[name].mean) if name in result.numbers else DASH for name, show in shown]
    return [*cells, _slowest(result.ended[0][0])]


def _slowest(figures: Figures) -> str:
    whole = sum(figures.slowest.values())
    if not whole:
        return DASH
    most = sorted(figures.slowest.items(), key=lambda item: -item[1])[:_FEW]
    return ", ".join(f"{replica}: {amounts.percent(count / whole)}" for replica, count in most)


def staleness(comparison: Comparison) -> str:
    """Pushes by how late they were, all seeds together, of what applies them as they come."""
    look, drawn = looks(comparison), []
    for number, result in enumerate(comparison.results):
        counts: dict[int, int] = {}
        for figures, _ in result.ended:
            for late, count in figures.staleness.items():
                counts[late] = counts.get(late, 0) + count
        if counts:
            mean = sum(late * count for late, count in counts.items()) / sum(counts.values())
            name = result.variant.name
            drawn.append(figure(f"{name}: mean {mean:.2f}, most {max(counts)}", _histogram(counts, look[name], number)))
    if not drawn:
        return ""
    note = "Pushes by how many updates older than the newest the parameters were from which they were computed."
    return f"<section><h2>Staleness</h2><div class='several'>{''.join(drawn)}</div><p class='note'>{note}</p></section>"


def _histogram(counts: dict[int, int], look: Look, number: int) -> str:
    return plots.histogram(counts, look, f"staleness-{number}", "updates late")
