"""What a corpus holds, and why a document is in it or not."""

from pathlib import Path

import numpy as np
import pytest

from plait import spec
from plait.data import prepare, records, statistics
from plait.data.explain import explain
from plait.data.statistics import Lengths
from plait.data.tokens import Prepared
from plait.errors import DataError
from plait.tasks import corpus as asking
from tests.data.test_cleaning import CHINESE, ENGLISH, prose, told

TEXTS = [
    *prose(30),
    ENGLISH,
    CHINESE,
    "the end",
    prose(30)[4],
    prose(30)[7].rsplit(" ", 1)[0] + " end",
    "cafe\u0301 " + prose(1, seed=8)[0],
]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    clean = spec.Clean(rules=["gopher"], limits={"*": spec.Limits(stop_words=0, mean_word=[1, 20], words=[10, 1000])})
    return prepare.prepare(told(tmp_path_factory.mktemp("ready"), TEXTS, clean=clean))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("0", ["document 0 ", "corpus.jsonl:1", "unchanged", "kept: ", "tokens in the "]),
        ("corpus.jsonl:33", ["dropped by 'words': 2 where at least 10 is allowed (Rae et al. 2021, A.1.1)"]),
        ("33", ["dropped: duplicate: document 4,", "corpus.jsonl:5, stays"]),
        ("34", ["dropped: near-duplicate of similarity 0.9", "0.8 or more is one: document 7,"]),
        ("35", ["changed by normalize: "]),
        (records.spelled(records.identity(CHINESE)), ["document 31 ", "language zh", "kept: "]),
        (records.spelled(records.identity(TEXTS[4])), ["document 4 ", "document 33 "]),
    ],
)
def test_a_document_is_explained_by_the_rule_that_judged_it(ready: Prepared, document: str, words: list[str]) -> None:
    said = explain(ready, document)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("document", "hint"), [("99", "it holds documents 0 to 35"), ("corpus.json:1", "corpus.jsonl has others"), ("x", "by FILE:LINE")]
)
def test_a_document_that_is_not_there(ready: Prepared, document: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        explain(ready, document)


def test_the_manifest_records_each_step_with_settings_versions_and_counts(ready: Prepared) -> None:
    lineage = ready.manifest.lineage
    assert lineage is not None
    steps = {step.name: step for step in lineage.steps}
    assert steps["repair"].by.startswith("ftfy 6")
    assert steps["normalize"].settings == {"form": "NFC"}
    assert (steps["normalize"].documents, steps["words"].documents, steps["duplicate"].documents) == (1, 1, 1)
    assert steps["near-duplicate"].settings == {"within": "corpus", "similarity": 0.8}
    assert (steps["read"].documents, steps["split"].documents) == (36, 33)
    assert "evaluation set" not in steps
    assert "language" not in steps


def test_statistics_count_what_was_read_and_what_stayed(ready: Prepared) -> None:
    found = statistics.of(ready)
    assert (found.read, found.kept) == (36, 33)
    assert found.reasons == {"words": 1, "duplicate": 1, "near-duplicate": 1}
    assert found.changes["normalize"] == 1
    assert found.tokens.total == sum(tokens for _, tokens in found.splits.values())
    assert found.before.total == sum(map(len, TEXTS))
    assert found.languages["zh"] == (1, 1)
    (source,) = found.sources
    assert (source.read, source.kept, source.share_before, source.share_after) == (36, 33, 1.0, 1.0)


def test_lengths_tell_how_uneven_they_are() -> None:
    even, uneven = Lengths.of(np.full(200, 100)), Lengths.of(np.array([1] * 198 + [1000] * 2))
    assert (even.mean, even.quantiles, even.gini) == (100, [100.0] * 6, pytest.approx(0))
    assert (sum(uneven.bins), uneven.bins[0], uneven.bins[9]) == (200, 198, 2)
    assert uneven.longest_share == pytest.approx(2000 / 2198)
    assert uneven.gini == pytest.approx(2000 / 2198 - 2 / 200)  # two steps: the area between the diagonal and the curve
    assert Lengths.of(np.zeros(3)).documents == 0


def test_a_run_file_stands_for_what_was_prepared_from_it(ready: Prepared, tmp_path: Path) -> None:
    assert asking.opened(ready.folder).fingerprint == ready.fingerprint
    run = tmp_path / "run.toml"
    (tmp_path / "a.txt").write_text("text")
    run.write_text(f'data.corpus = ["{tmp_path}/a.txt"]\ndata.prepared = "{tmp_path}/prepared"\ntrain.duration = "1 steps"\n')
    with pytest.raises(DataError, match="its corpus is not prepared, or has changed since; run plait data prepare"):
        asking.opened(run)
