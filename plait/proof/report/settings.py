"""What was set, what disturbed it, and how to repeat it."""

from __future__ import annotations

import json

import tomli_w

from plait.proof.comparison import Comparison, Result
from plait.proof.report.looks import key
from plait.proof.report.markup import text


def settings(comparison: Comparison) -> str:
    rows = "".join(
        f'<tr><th scope="row">{key(result, comparison)}{text(result.variant.name)}</th><td class="left">{_settings_of(result)}</td></tr>'
        for result in comparison.results
    )
    run = comparison.run.resolved()
    run.pop("sync", None)
    chosen = any(result.variant.chosen for result in comparison.results)
    note = '<p class="note">Settings marked * are plait compare\'s: the run file does not say.</p>' if chosen else ""
    return (
        '<section><h2>Settings</h2><div class="scroll"><table class="settings"><thead><tr><th scope="col">run</th>'
        f'<th class="left" scope="col">[sync]</th></tr></thead><tbody>{rows}</tbody></table></div>{note}{_interruptions(comparison)}'
        f"<details><summary>The rest of the run file{'' if not comparison.existing else ', of the first'}</summary>"
        f"<pre>{text(tomli_w.dumps(run))}</pre></details></section>"
    )


def _settings_of(result: Result) -> str:
    shown = []
    for name, value in result.variant.sync.items():
        said = tomli_w.dumps({name: value}).strip() if not isinstance(value, dict | list) else f"{name} = {json.dumps(value)}"
        shown.append(f"<code>{text(said)}</code>{'*' if name in result.variant.chosen else ''}")
    return "<span>" + "</span> <span>".join(shown) + "</span>"


def _interruptions(comparison: Comparison) -> str:
    """What disturbed a run is not its strategy's doing, and readers should know."""
    told = [
        f"{result.variant.name} (seed {trial.seed}): {figures.lost} processes lost, {figures.rolled_back} times rolled back, "
        f"{figures.skipped} steps skipped"
        for result in comparison.results
        for trial in result.trials
        if (figures := trial.figures) is not None and (figures.lost or figures.rolled_back or figures.skipped)
    ]
    return f'<p class="note">Not undisturbed: {text("; ".join(told))}.</p>' if told else ""


def again(comparison: Comparison, command: str) -> str:
    folders = sorted({str(trial.folder) for result in comparison.results for trial in result.trials})
    first = folders[0]
    return (
        f"<section><h2>Again</h2><pre>{text(command)}</pre>"
        f'<p class="note">Each run is in a folder of its own, with its run file and its journal: <code>{text(first)}</code>'
        f"{text(f' and {len(folders) - 1} more beside it') if len(folders) > 1 and not comparison.existing else ''}. "
        "The figures of this page are in compare.json.</p></section>"
    )
