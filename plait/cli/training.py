"""Commands that train, and that look at a run and at the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from plait import spec
from plait.cli.app import Overrides, RunFile, RunFolder, alerts, app


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME of the run file when left out.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print every setting and stop.")] = False,
) -> None:
    """Train; what is missing is prepared, and what is there is resumed."""
    run = spec.load(run_file, overrides or ())
    if resolved:
        _print_toml(run)
        return
    from plait.cluster import environment
    from plait.tasks import pretrain
    from plait.tasks.showing import PreparingBar, conclusion

    result = pretrain.train(run, out or Path("runs") / run_file.stem, preparing=PreparingBar())
    if environment.leading():
        print(conclusion(result))


@app.command()
def status(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a run is doing: its step, its generation, and what each worker does."""
    from plait.cluster import status as now
    from plait.tasks.showing import status_table

    found = now.read(folder)
    if as_json:
        print(json.dumps(found))
    else:
        status_table(found)


@app.command()
def checkpoints(
    folder: RunFolder,
    check: Annotated[bool, typer.Option("--check", help="Read every byte and compare checksums.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a run's checkpoints, those of its second home too, and say which are damaged; exit code 3 where one is."""
    from plait.errors import ProofFailed
    from plait.tasks.showing import checkpoint_line
    from plait.train.inventory import inventory

    found = []
    for held in inventory(folder, check):
        found.append(held)
        if not as_json:
            print(checkpoint_line(held, check), flush=True)
    if as_json:
        print(json.dumps([held.as_dict() for held in found]))
    if damaged := [held for held in found if held.wrong is not None]:
        raise ProofFailed("" if as_json else f"{folder}: {len(damaged)} of {len(found)} checkpoints are damaged")
    if not as_json and not found:
        print(f"{folder}: no checkpoint has been saved yet")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option("--out", help="Where runs would be kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has, and what will and will not work here."""
    from dataclasses import asdict

    from plait.cluster.doctor import examine
    from plait.tasks.showing import findings_table

    findings = examine(folder)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        findings_table(findings)


@app.command()
def schema() -> None:
    """Print the run file's JSON Schema, for editors."""
    print(json.dumps(spec.schema(), indent=2))


@alerts.command("test")
def alerts_test(run_file: RunFile, overrides: Overrides = None) -> None:
    """Send one alert by the command and the webhook of a run file, as a training would."""
    from plait.watch.alerts import rehearse

    run = spec.load(run_file, overrides or ())
    for line in rehearse(run.alerts, Path("runs") / run_file.stem):
        print(line, flush=True)


def _print_toml(run: spec.Run) -> None:
    import tomli_w

    print(tomli_w.dumps(run.resolved()), end="")
