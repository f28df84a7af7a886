"""The page of a corpus: sound, complete, and without words that would break it."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from plait import spec
from plait.data import prepare, statistics
from plait.proof.report.corpus import write_page
from plait.tasks.corpus import print_statistics
from tests.data.test_cleaning import CHINESE, ENGLISH, prose, told


@pytest.mark.parametrize(
    "clean", [pytest.param(None, marks=pytest.mark.slow), spec.Clean(languages=["en", "zh"], limits={"*": spec.Limits(stop_words=0)})]
)
def test_the_page_shows_every_figure(tmp_path: Path, clean: spec.Clean | None, capsys: pytest.CaptureFixture[str]) -> None:
    data = told(tmp_path, [*prose(40), ENGLISH, CHINESE, CHINESE, "short"], clean=clean)
    both = data.model_copy(update={"corpus": [spec.Source(path=str(data.corpus[0]), name="<a> & b")], "broken": "skip"})
    prepared = prepare.prepare(both)
    found = statistics.of(prepared)
    write_page(prepared, found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert f"{found.kept:,} of {found.read:,} documents" in page
    assert "&lt;a&gt; &amp; b" in page
    print_statistics(found)
    out = capsys.readouterr().out
    for name in [*found.reasons, *found.changes, *found.languages]:
        assert name in page
        assert name in out
