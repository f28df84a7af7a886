"""The application: groups of commands, and what their arguments have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait import __version__, spec

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train language models in parallel.")
data = typer.Typer(no_args_is_help=True, help="Prepare corpora.")
app.add_typer(data, name="data")
alerts = typer.Typer(no_args_is_help=True, help="Who is told when something goes wrong.")
app.add_typer(alerts, name="alerts")
storage = typer.Typer(no_args_is_help=True, help="Look after places where data is kept.")
app.add_typer(storage, name="store")
verify = typer.Typer(no_args_is_help=True, help="Prove plait's promises on this machine.")
app.add_typer(verify, name="verify")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Settings laid over the file's.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]
PreparedData = Annotated[Path, typer.Argument(metavar="PREPARED", help="A folder that plait data prepare printed, or its run file.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.callback(invoke_without_command=True)
def _plait(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"plait {__version__}")
        raise typer.Exit


def device_named(name: str) -> spec.Device:
    return spec.Cluster(device=name).device  # type: ignore[arg-type]
