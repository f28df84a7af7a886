"""Commands about data, and the places where it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from plait import spec
from plait.cli.app import Overrides, PreparedData, RunFile, data, storage


@data.command("prepare")
def prepare(run_file: RunFile, overrides: Overrides = None) -> None:
    """Make token files of a run's corpus, or find those that were made."""
    from plait.tasks import pretrain
    from plait.tasks.showing import PreparingBar, prepared_lines

    print(prepared_lines(pretrain.prepare(spec.load(run_file, overrides or ()), PreparingBar())))


@data.command("verify")
def verify(run_file: RunFile, overrides: Overrides = None) -> None:
    """Read all that was prepared, in its home and in its backup, and write anew what one of them has lost or not as it was written."""
    from plait.tasks import corpus

    for line in corpus.verified(run_file, overrides or ()):
        print(line)


@data.command("stats")
def data_stats(
    what: PreparedData,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
) -> None:
    """Show what a prepared corpus holds: lengths, languages, sources, why documents were dropped, token counts."""
    from plait.tasks import corpus

    prepared, told = corpus.told(what, overrides or ())
    if page is not None:
        from plait.proof.report.corpus import write_page

        write_page(prepared, told, page)
    if as_json:
        print(json.dumps(told.as_dict()))
    else:
        corpus.print_statistics(told)


@data.command("explain")
def data_explain(
    what: PreparedData,
    document: Annotated[str, typer.Option(help="16 digits of its hash, FILE:LINE, or its number.")],
    overrides: Overrides = None,
) -> None:
    """Say why a document was kept, changed or dropped: by which rule, with which value."""
    from plait.data.explain import explain
    from plait.tasks import corpus

    print(explain(corpus.opened(what, overrides or ()), document))


@storage.command("check")
def check_store(
    url: Annotated[str, typer.Argument(metavar="URL", help="A place to write: s3://bucket/path, hdfs://host/path, ./folder, ...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write, read, list and delete at a URL, and show what works there and how fast; exit code 1 or 2 where something does not."""
    from plait.store.check import check
    from plait.store.showing import table

    checked = list(check(url))
    if as_json:
        print(json.dumps([each.as_dict() for each in checked]))
    else:
        table(checked)
    if failed := [each.trouble for each in checked if each.state == "failed" and each.trouble is not None]:
        raise failed[0]
