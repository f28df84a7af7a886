"""What `plait store check` shows."""

from __future__ import annotations

from plait.store.check import Checked


def table(checked: list[Checked]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "not there": "[yellow]not there[/]", "failed": "[red]failed[/]"}
    shown = Table(box=None, pad_edge=False)
    for title, side in (("", "left"), ("operation", "left"), ("seconds", "right"), ("MB/s", "right"), ("", "left")):
        shown.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    for each in checked:
        speed = "" if each.throughput is None else f"{each.throughput:,.1f}"
        why = "" if each.trouble is None else str(each.trouble)
        shown.add_row(marks[each.state], each.operation, f"{each.seconds:.3f}", speed, escape(why))
    Console().print(shown)
