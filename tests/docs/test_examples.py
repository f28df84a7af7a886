"""The examples: their corpora are what they say, what they are compared with is right, and they train, smoke-sized."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from examples import all as examples_of
from examples import baselines, measures
from examples.corpora import films, packages
from examples.corpora import help as help_pages
from plait import spec
from plait.data import sources, streams
from tests.docs.pages import ROOT

CORPORA = ROOT / "examples" / "corpora"


def rows(corpus: str, file: str) -> list[str]:
    return b"".join(streams.read(CORPORA / corpus / file)).decode().splitlines()


# --- corpora -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("corpus", "kind"), [("verses", "jsonl"), ("reviews", "jsonl"), ("help", "tsv")])
def test_what_is_held_back_is_nowhere_else(corpus: str, kind: str) -> None:
    found = [line for split in ("train", "validation", "test") for line in rows(corpus, f"{split}.{kind}.zst")]
    read = [line.split("\t")[0] if kind == "tsv" else json.loads(line)["text"] for line in found]
    assert len(set(read)) == len(read)
    assert f"{len(found):,} " in (CORPORA / corpus / "ORIGIN.md").read_text(encoding="utf-8")
    if corpus == "verses":
        assert all(map(measures.is_quatrain, read))
        verses = [line for poem in read for line in set(measures.lines(poem))]
        assert len(set(verses)) == len(verses)


@pytest.mark.parametrize("name", [name for each in examples_of.EXAMPLES.values() for name in each.runs])
def test_a_run_file_finds_its_corpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert sources.every_file(sources.resolve(spec.load(f"examples/{name}.toml").data))


def test_a_package_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "FOLDER", tmp_path / "packages")
    writing = [sys.executable, "-c", "open('some_1.tar.gz', 'w').write('content')"]
    right = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert packages.fetched("some-1.tar.gz", writing, right).read_text() == "content"
    failing = [sys.executable, "-c", "raise SystemExit(1)"]
    assert packages.fetched("some-1.tar.gz", failing, right).read_text() == "content"
    with pytest.raises(SystemExit, match=r"other-1\.tar\.gz: is not what the corpus was made of"):
        packages.fetched("other-1.tar.gz", writing, 64 * "0")
    with pytest.raises(SystemExit, match=r"other-1\.tar\.gz: cannot be fetched"):
        packages.fetched("other-1.tar.gz", failing, right)
    assert [path.name for path in (tmp_path / "packages").iterdir()] == ["some-1.tar.gz"]


def test_paragraphs_are_known_by_their_ids() -> None:
    page = '<h1 id="a">Save\n the <b>file</b></h1><p>no id</p><p id="b">Ärger &amp; Co</p><p id="a">again</p>'
    assert help_pages.Paragraphs(page).found == {"a": "Save the file", "b": "Ärger & Co"}


def test_ratings_become_labels() -> None:
    assert films.reviews("1\t2.3\tA  fine\tfilm.\n2\t-0.1\tDull.\n3\t0\tA film.\n") == {"A fine film.": "positive", "Dull.": "negative"}


def test_one_sentence_of_a_report_has_what_is_asked_about_and_the_answer() -> None:
    reports: dict[str, set[str]] = {"train": set(), "test": set()}
    for split, found in reports.items():
        for row in rows("facts", f"{split}.jsonl.gz"):
            said = [message["content"] for message in json.loads(row)["messages"]]
            report, _, said[0] = said[0].rpartition(". ")
            found.add(report)
            sentences = [set(sentence.split()) for sentence in report.split(". ")]
            for question, answer in zip(said[::2], said[1::2], strict=True):
                way = {"at"} if " is " in question else {"the"}
                assert [answer in each for each in sentences if question.split()[-1][:-1] in each and way <= each] == [True]
    assert reports["train"].isdisjoint(reports["test"])


# --- what models are compared with -------------------------------------------------------------------------------


def spelled_out(train: str, test: str, order: int) -> float:
    """Witten and Bell's formula, letter by letter."""
    after: dict[str, Counter[str]] = defaultdict(Counter)
    for length in range(order):
        for place in range(length, len(train)):
            after[train[place - length : place]][train[place]] += 1
    letters, both, bits = len(set(train + test)), train + test, 0.0
    for place in range(len(train), len(both)):
        chance = 1 / letters
        for length in range(order):
            seen = after.get(both[place - length : place])
            if seen:
                chance = (seen[both[place]] + len(seen) * chance) / (seen.total() + len(seen))
        bits -= math.log2(chance)
    return bits


def test_ngram_bits_are_those_of_the_formula() -> None:
    chance = random.Random(0)
    train, test = (["".join(chance.choices("abcd", [8, 4, 2, 1], k=40)) for _ in range(count)] for count in (5, 2))
    joined = [baselines.END.join([*documents, ""]) for documents in (train, test)]
    for order in (1, 2, 3):
        assert baselines.ngram_bits(train, test, [order]) == (pytest.approx(spelled_out(*joined, order)), order)
    by_order = {order: spelled_out(*joined, order) for order in (1, 2, 3)}
    assert baselines.ngram_bits(train, test, range(1, 4))[1] == min(by_order, key=by_order.__getitem__)


def test_an_ngram_writes_what_it_has_read() -> None:
    simple = baselines.NGram(["ab", "ac"], 2)
    assert {simple.write(random.Random(seed)) for seed in range(20)} == {"ab", "ac"}


def test_xz_copies_what_it_has_read() -> None:
    text = "".join(random.Random(0).choices("abcdefgh", k=4000))
    assert baselines.xz_bits([text], [text]) < baselines.xz_bits(["a"], [text]) / 10


def test_the_form_of_a_quatrain() -> None:
    poem = "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。"
    assert measures.is_quatrain(poem)
    for broken in (poem[:-1], poem + "\n", poem.replace("，", "。"), poem.replace("明月光", "明月"), poem.replace("\n", "")):
        assert not measures.is_quatrain(broken)
    figures = {figure.name: figure for figure in measures.form({"model": [poem, "光。"], "poets": [poem]}, [poem])}
    assert {name: figure.value for name, figure in figures.items()} == {"quatrains": "50%", "that rhyme": "50%", "lines copied": "80%"}
    assert figures["that rhyme"].beside == "poets 100%"


# --- all of it ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("examples", "smoke")
def test_every_example_trains_and_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    examples_of.main([])
    told = capsys.readouterr().out
    figures = json.loads(examples_of.FIGURES.read_text())
    assert list(figures) == list(examples_of.EXAMPLES)
    for name, measured in figures.items():
        assert f"plait train examples/{name}.toml" in told
        assert all(f"{each['name']}: " in told for each in measured)
        assert all(math.isfinite(value) for each in measured for value in (each["model"], *each["others"].values()))
        assert all(each["others"] for each in measured)


def test_an_unknown_example_is_refused() -> None:
    with pytest.raises(SystemExit, match="poems: is none of austen, verses"):
        examples_of.main(["poems"])
