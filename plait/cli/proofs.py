"""Commands that prove plait's promises here, and compare."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from plait import spec
from plait.cli.app import Overrides, RunFile, RunFolder, app, verify
from plait.errors import ProofFailed

Figures = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")]


@verify.command("layouts")
def verify_layouts(
    run_file: RunFile,
    overrides: Overrides = None,
    layouts: Annotated[list[str] | None, typer.Option(help="tensor=2,pipeline=2; repeat for several. All that fit when left out.")] = None,
    steps: Annotated[int, typer.Option(help="Steps to compare.", min=1)] = 10,
    figures: Figures = None,
) -> None:
    """Train in one process and under each layout, in fp64, and compare the curves; exit code 3 where one differs."""
    from plait.proof import layouts as proof
    from plait.proof.showing import conclusion, heading, line

    run = spec.load(run_file, overrides or ())
    chosen = [proof.parse_layout(text) for text in layouts] if layouts else None
    print(heading(proof.Tolerance()), flush=True)
    report = proof.verify_layouts(run, chosen, steps, told=lambda compared: print(line(compared), flush=True))
    _conclude(report, conclusion(report), figures)


@verify.command("faults")
def verify_faults(
    run_file: RunFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps to compare.", min=6)] = 12,
    figures: Figures = None,
) -> None:
    """Kill workers at each point of a step, hang them, have them fail, and compare with the undisturbed curve, in fp64; exit code 3 where
    a failure is not survived as promised."""
    from plait.proof import faults as proof
    from plait.proof.layouts import Tolerance
    from plait.proof.showing import survived_conclusion, survived_heading, survived_line

    run = spec.load(run_file, overrides or ())
    print(survived_heading(Tolerance()), flush=True)
    report = proof.verify_faults(run, steps, told=lambda each: print(survived_line(each), flush=True))
    _conclude(report, survived_conclusion(report), figures)


@verify.command("soak")
def verify_soak(
    run_file: RunFile,
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(help="Processes to kill.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of who is killed, and when.")] = 0,
    figures: Figures = None,
) -> None:
    """Kill random workers of one run, many times, and compare with the undisturbed curve, in fp64; exit code 3 where it is not survived as
    promised."""
    from plait.proof.showing import soaked_lines, tell_of_kills
    from plait.proof.soak import soak

    soaked = soak(spec.load(run_file, overrides or ()), kills, seed, told=tell_of_kills(kills))
    _conclude(soaked, soaked_lines(soaked), figures)


@verify.command("run")
def verify_run(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove from a run's journal that each sample of each committed step was used exactly once; exit code 3 where one was not."""
    from plait.proof import coverage, showing

    proof = coverage.verify_run(folder)
    if as_json:
        print(json.dumps(proof.as_dict()))
    if not proof.ok:
        raise ProofFailed("" if as_json else f"{folder}: {showing.coverage(proof)}")
    if not as_json:
        print(f"{folder}: {showing.coverage(proof)}")


@app.command()
def compare(
    what: Annotated[
        list[str], typer.Argument(metavar="RUN.toml [section.key=value]... | --runs DIR DIR...", help="A run file; or folders of runs.")
    ],
    out: Annotated[Path, typer.Option(help="The report's folder: compare.html, compare.json, runs/.")],
    runs: Annotated[bool, typer.Option("--runs", help="Compare runs that exist.")] = False,
    sync: Annotated[str, typer.Option(help="Strategies, with commas between.")] = "local_sgd,diloco,synchronous,bounded,asynchronous",
    compress: Annotated[str, typer.Option(help="Codecs for allreduce, or STRATEGY/CODEC, with commas between.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each.", min=1)] = 1,
) -> None:
    """Train under each strategy for the same tokens, or take runs that exist, and report what each costs and does to the loss."""
    from plait.proof import compare as comparing
    from plait.proof import report, telling

    comparing.check_out(out)
    if runs:
        comparison = comparing.compare_runs([Path(folder) for folder in what], telling.tell)
    else:
        run = spec.load(what[0], what[1:])
        names, codecs = ([name for name in text.split(",") if name.strip()] for text in (sync, compress))
        comparison = comparing.compare(run, names, out, compress=codecs, seeds=seeds, told=telling.tell)
    report.write(comparison, out, shlex.join(["plait", *sys.argv[1:]]))
    telling.conclude(comparison)
    print(f"{out / 'compare.html'}")
    comparing.check_ended(comparison)


class _Proof(Protocol):
    @property
    def ok(self) -> bool: ...

    def as_dict(self) -> dict[str, Any]: ...


def _conclude(proof: _Proof, told: str, figures: Path | None) -> None:
    """Raises ProofFailed where the promise is not kept."""
    if figures is not None:
        figures.write_text(json.dumps(proof.as_dict(), indent=1) + "\n", encoding="utf-8")
    if not proof.ok:
        raise ProofFailed(told)
    print(told)
