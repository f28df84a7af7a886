"""What `plait compare` shows on a console: a line as each trial ends, and a table in the end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plait.proof import amounts
from plait.proof.comparison import Comparison, Result, Trial, numbers_of
from plait.proof.verdict import verdict

_WIDTH = 120
"""Of the table where a console says less, or is none."""


def tell(trial: Trial) -> None:
    """One line, whatever its width: logs are read later, elsewhere."""
    Console(soft_wrap=True, highlight=False).print(Text.assemble((f"{trial.variant}, seed {trial.seed}  ", "bold"), _outcome(trial)))


def conclude(comparison: Comparison) -> None:
    """The table, and the verdict beneath."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in ("time", "tokens/s", "sent", "waiting", "training loss", "validation loss", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in comparison.results:
        table.add_row(Text(result.variant.name, style="bold"), *_row(result))
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, _WIDTH)
    console.print(table)
    for sentence in verdict(comparison):
        console.print(Text(sentence))


def _outcome(trial: Trial) -> Text:
    if trial.figures is None or trial.score is None:
        return Text(f"did not end: {trial.why}", style="red")
    named = numbers_of(trial.figures, trial.score)
    shown = [amounts.seconds(named["seconds"]), f"{named.get('tokens_per_s', 0.0):,.0f} tokens/s"]
    shown += [f"sent {amounts.size(named['sent'])}"] if "sent" in named else []
    shown += [f"validation loss {named['loss']:.4f}" if "loss" in named else "validation loss not finite"]
    return Text("  ".join(shown))


def _row(result: Result) -> list[str]:
    if result.why is not None:
        return ["did not end"]
    shows = {
        "seconds": amounts.seconds,
        "tokens_per_s": amounts.number,
        "sent": amounts.size,
        "waited_share": amounts.percent,
        "train_loss": amounts.loss,
        "loss": amounts.loss,
        "accuracy": amounts.accuracy,
    }
    return [show(result.numbers[name].mean) if name in result.numbers else "–" for name, show in shows.items()]
