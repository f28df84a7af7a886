"""Preparing: the right tokens, found again, resumed after a kill, and never half there."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plait import spec
from plait.data import chunks, pieces, preparation, prepare, records, splits, worker
from plait.data.chunks import Chunk
from plait.data.prepare import Progress
from plait.data.splits import SPLITS
from plait.data.tokens import Prepared
from plait.errors import DataError, WorkerFailed
from plait.store import durable


def documents(count: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    words = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "tree", "and", "then", "again"]
    return [f"{number}: " + " ".join(chance.choices(words, k=40)) for number in range(count)]


def told(tmp_path: Path, texts: list[str] | None = None, **settings: Any) -> spec.Data:
    """Data settings for a corpus of some documents under tmp_path."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n\f\n".join(texts if texts is not None else documents(80)))
    usual = {"corpus": [str(path)], "tokenizer": spec.Tokenizer(train=280), "prepared": str(tmp_path / "prepared"), "workers": 1}
    return spec.Data(**{**usual, "sequence": 16, **settings})


def texts_of(prepared: Prepared, split: str, source: int = 0) -> list[str]:
    """The documents that stand in a token file."""
    file = prepared.split(split, 16).sources[source]
    tokenizer = prepared.tokenizer()
    assert np.all(file.tokens[file.starts] == tokenizer.end_of_text)
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(file.tokens, file.starts[1:])]


def home(text: str, told: spec.Splits) -> str:
    return SPLITS[splits.of(records.identity(text), "", {}, told)]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> spec.Data:
    data = told(tmp_path_factory.mktemp("ready"))
    prepare.prepare(data)
    return data


def test_token_files_hold_each_document_once_in_the_split_of_its_content(ready: spec.Data) -> None:
    prepared = prepare.prepare(ready)
    assert prepared.vocabulary == 280
    assert sorted(text for split in SPLITS for text in texts_of(prepared, split)) == sorted(documents(80))
    for split in SPLITS:
        assert texts_of(prepared, split) == [text for text in documents(80) if home(text, ready.split) == split]
        assert prepared.documents(split) == len(texts_of(prepared, split))
    text = sum(len(one) for one in documents(80))
    assert prepared.bytes_per_token() == pytest.approx(text / sum(prepared.tokens(split) for split in SPLITS))


def test_a_document_keeps_its_split_wherever_it_stands() -> None:
    splits = spec.Splits(validation=0.2, test=0.3)
    homes = [home(text, splits) for text in documents(4000)]
    assert abs(homes.count("validation") - 800) < 120
    assert abs(homes.count("test") - 1200) < 150
    assert homes[::-1] == [home(text, splits) for text in documents(4000)[::-1]]


def test_what_is_prepared_is_found_and_not_read_again(ready: spec.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "Workers", None)
    found = prepare.find(ready)
    assert found is not None
    assert found.fingerprint == prepare.prepare(ready).fingerprint == Prepared.open(found.folder).fingerprint
    free = {"document_mask": True, "sequence": 8, "workers": 2}
    assert prepare.prepare(ready.model_copy(update=free)).folder == found.folder


def test_settings_that_shape_tokens_ask_for_another_folder(ready: spec.Data) -> None:
    for change in ({"separator": "\n"}, {"split": spec.Splits(validation=0.1)}, {"tokenizer": spec.Tokenizer(train=281)}):
        assert prepare.find(ready.model_copy(update=change)) is None


def test_the_fingerprint_is_of_content_not_of_paths(ready: spec.Data, tmp_path: Path) -> None:
    moved = prepare.prepare(told(tmp_path))
    assert moved.fingerprint == prepare.prepare(ready).fingerprint
    changed = prepare.prepare(told(tmp_path, documents(80)[::-1]))
    assert changed.fingerprint != moved.fingerprint


def test_many_pieces_and_workers_give_the_same_bytes(ready: spec.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SMALLEST", 700)
    heard: list[Progress] = []
    split = prepare.prepare(told(tmp_path, workers=2), listener=heard.append)
    split.verify()
    assert split.fingerprint == prepare.prepare(ready).fingerprint
    assert {progress.stage for progress in heard} == {"reading", "training the tokenizer", "tokenising", "writing"}
    assert (heard[-1].documents, heard[-1].done_bytes) == (80, heard[-1].total_bytes)
    assert heard[-1].tokens == sum(split.tokens(name) for name in SPLITS)


def test_sources_of_a_mixture_have_a_file_each(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(30, seed=1)))
    plain = told(tmp_path)
    data = plain.model_copy(update={"corpus": [*plain.corpus, spec.Source(path=str(other), weight=3.0)]})
    prepared = prepare.prepare(data)
    train = prepared.split("train", 16)
    assert train.weights == [1.0, 3.0]
    assert texts_of(prepared, "train", 1) == [text for text in documents(30, seed=1) if home(text, data.split) == "train"]
    assert prepared.tokens("train") == train.tokens
    reweighed = data.model_copy(update={"corpus": [*plain.corpus, spec.Source(path=str(other), weight=9.0)]})
    assert prepare.prepare(reweighed).folder == prepared.folder
    assert prepare.prepare(reweighed).split("train", 16).weights == [1.0, 9.0]


def test_a_foreign_tokenizer_is_copied_in(ready: spec.Data, tmp_path: Path) -> None:
    trained = prepare.prepare(ready)
    data = told(tmp_path, tokenizer=spec.Tokenizer(file=str(trained.tokenizer_file)))
    prepared = prepare.prepare(data)
    assert prepared.fingerprint == trained.fingerprint
    assert prepared.tokenizer_file.parent == prepared.folder


def test_the_tokenizer_is_trained_on_the_training_split_alone(tmp_path: Path) -> None:
    texts = documents(60)
    secret = next(f"zq{n} " * 50 for n in range(1000) if home((f"zq{n} " * 50).strip("\r\n"), spec.Splits()) == "validation")
    with_secret, without = tmp_path / "a", tmp_path / "b"
    with_secret.mkdir()
    without.mkdir()
    knowing, plain = prepare.prepare(told(with_secret, [*texts, secret])), prepare.prepare(told(without, texts))
    assert knowing.documents("validation") == plain.documents("validation") + 1
    assert knowing.tokenizer().fingerprint == plain.tokenizer().fingerprint


def test_a_very_large_corpus_trains_the_tokenizer_on_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = worker.Workers.train

    def spy(self: worker.Workers, texts: Any, size: int, special: list[str]) -> str:
        kept = list(texts)
        seen.extend(text for some in kept for text in some)
        return original(self, kept, size, special)

    monkeypatch.setattr(worker.Workers, "train", spy)
    data = told(tmp_path)
    monkeypatch.setattr(preparation, "TRAINING_BYTES", (tmp_path / "corpus.txt").stat().st_size // 4)
    prepare.prepare(data)
    train = [text for text in documents(80) if home(text, data.split) == "train"]
    assert len(train) // 4 - 1 <= len(seen) <= len(train) // 4 + 1
    assert int(seen[-1].split(":")[0]) > 70


IMPORTS = "import os, signal, sys; from plait import spec; from plait.data import chunks, prepare"
KILLED = f"""
{IMPORTS}
chunks.SMALLEST = 700
def listener(progress):
    if progress.stage == sys.argv[2] and (progress.documents >= 20):
        os.kill(os.getpid(), signal.SIGKILL)
prepare.prepare(spec.Data.model_validate_json(sys.argv[1]), listener=listener)
"""


@pytest.mark.parametrize("stage", ["tokenising", "writing"])
def test_a_killed_preparation_goes_on_where_it_was(ready: spec.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    data = told(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, data.model_dump_json(), stage], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert prepare.find(data) is None
    kept = set(Path(data.prepared).glob("*.making/pieces/*.npz"))
    assert len(kept) > 1
    first = min(kept)  # as where one worker was slower than the others
    first.unlink()
    kept.remove(first)
    written: list[int] = []
    original = worker.Workers.write

    def spy(self: worker.Workers, folder: Path, chunk: Chunk, *rest: Any) -> Any:
        written.append(chunk.number)
        return original(self, folder, chunk, *rest)

    monkeypatch.setattr(worker.Workers, "write", spy)
    monkeypatch.setattr(chunks, "SMALLEST", 700)
    prepared = prepare.prepare(data)
    prepared.verify()
    assert prepared.fingerprint == prepare.prepare(ready).fingerprint
    assert not {int(path.stem) for path in kept} & set(written)
    assert not list(Path(data.prepared).glob("*.making"))
    assert not list(Path(data.prepared).glob("**/*.part"))


@pytest.mark.parametrize("arrived", [0.1, 0.5, 0.9, 1.0])
def test_a_request_cut_off_by_the_parents_death_leaves_no_piece(ready: spec.Data, tmp_path: Path, arrived: float) -> None:
    stored = prepare.prepare(ready).folder / "tokenizer.json"
    request = {"do": "write", "folder": str(tmp_path), "tokenizer": str(stored), "pattern": None, "talk": None, "objective": None}
    pipe = io.BytesIO()
    process: Any = SimpleNamespace(stdin=pipe)
    texts = documents(40)
    worker.send_chunk(process, request, Chunk(0, 0, texts, 0, records.blank(40), numbers=np.zeros((40, 0))))
    start = pipe.getvalue().index(texts[0].encode())
    whole = pipe.getvalue()
    sent = whole[: start + round((len(whole) - start) * arrived)]
    command = [sys.executable, "-m", "plait.data.worker"]
    done = subprocess.run(command, input=sent, stdout=subprocess.PIPE, check=True)
    assert bool(done.stdout) == (tmp_path / "00000000.npz").exists() == (arrived == 1.0)


def test_two_preparations_at_once_make_one_folder(tmp_path: Path) -> None:
    data = told(tmp_path)
    code = f"{IMPORTS}; print(prepare.prepare(spec.Data.model_validate_json(sys.argv[1])).folder)"
    both = [subprocess.Popen([sys.executable, "-c", code, data.model_dump_json()], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    Prepared.open(Path(folders.pop())).verify()


def test_a_script_without_a_main_guard_prepares(tmp_path: Path) -> None:
    data = told(tmp_path, workers=2)
    script = tmp_path / "script.py"
    script.write_text(
        f"print('once')\nfrom plait import spec\nfrom plait.data import chunks, prepare\nchunks.SMALLEST = 700\n"
        f"prepare.prepare(spec.Data.model_validate_json({data.model_dump_json()!r}))\n"
    )
    (tmp_path / "json.py").write_text("raise RuntimeError('a file of the user, not ours to import')\n")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert done.stdout == "once\n"


def full_disk(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "name"), [(pieces, "join"), (durable, "rename")])
def test_no_space_left_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    data = told(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        with pytest.raises(DataError, match=r"prepared: no space left; preparing .* about \d+ MiB there.*run again to go on"):
            prepare.prepare(data)
    assert prepare.find(data) is None
    prepare.prepare(data).verify()


def test_no_space_left_in_a_worker_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_answer", answering(worker._answer, lambda answer: {"error": "No space left", "errno": errno.ENOSPC}))
    with pytest.raises(DataError, match="no space left"):
        prepare.prepare(told(tmp_path))


def answering(original: Callable[[Any], Any], change: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
    """A worker's answer about a piece, changed before it is read."""

    def answer(process: Any) -> Any:
        given = original(process)
        return given if "json" in given else worker._checked(change(given))

    return answer


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    chunk = Chunk(0, 0, ["text"], 4, records.blank(1))
    with worker.Workers(1) as workers:
        workers._processes[0].kill()
        with pytest.raises(WorkerFailed, match="killed by signal 9"):
            workers.write(tmp_path, chunk, tmp_path / "tokenizer.json", None).result()


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    data = told(tmp_path)

    def change(progress: Progress) -> None:
        if progress.stage == "tokenising":
            (tmp_path / "corpus.txt").write_text("other text\f" * 100)

    with pytest.raises(DataError, match="changed while it was being prepared"):
        prepare.prepare(data, listener=change)
    assert not list(Path(data.prepared).glob("*.making"))


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, r"corpus.txt: is empty: it has no bytes"),
        (["\n"], {}, r"data.corpus: is empty: no text in .*corpus.txt"),
        ([" \n", "\n"], {}, r"data.corpus: is empty"),
        (None, {"tokenizer": spec.Tokenizer(train=50_000)}, r"train = 50000 is more than the corpus can give"),
    ],
)
def test_a_corpus_that_cannot_be_prepared(tmp_path: Path, texts: list[str] | None, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare.prepare(told(tmp_path, texts, **settings))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.prepared: .*file: cannot be written"):
        prepare.prepare(told(tmp_path, prepared=str(tmp_path / "file")))
