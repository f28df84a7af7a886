"""Cleaning: each step, each rule in English and in Chinese, duplicates, evaluation sets; the same whoever does it."""

import importlib.util
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import spec, store
from plait.data import chunks, preparation, prepare, records, worker
from plait.data.cleaning import cleaner, languages, near, repair, rules
from plait.data.cleaning.cleaner import Cleaner
from plait.data.cleaning.words import Words
from plait.data.tokens import Prepared
from plait.errors import DataError, RunFileError

NONE = np.zeros(0, np.uint64)
ENGLISH = (
    "It is a truth that a man of fortune has to be in want of a wife. However little is known of the feelings of such a man when he comes "
    "to the place, this truth is so well fixed in the minds of the families around that he is considered the property of one or other of "
    "their daughters. My dear, said his lady to him one day, have you heard that the great house is let at last?"
)
NO_STOP_WORDS = " ".join(
    f"{one}{other}"
    for one in ("bright", "dark", "green", "loud")
    for other in ("stone", "river", "sky", "tree", "bird", "moon", "sand", "wolf", "fern", "hill", "rain", "lake", "sun")
)
NO_FUNCTION_CHARACTERS = (
    "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结霜金生丽水玉出昆冈剑号巨阙珠称夜光果珍李柰菜重芥姜海咸"
    "河淡鳞潜羽翔龙师火帝鸟官皇始制文字乃服衣裳推位让国虞陶唐吊民伐罪周发殷汤坐朝问道垂拱平章爱育黎首臣伏戎羌遐迩体率宾归王鸣凤竹白驹食场"
)
CHINESE = (
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？其为人也孝弟，而好犯上者，鲜矣。不好犯上，而好作乱者，未之有也。"
    "君子务本，本立而道生。孝弟也者，其为仁之本与？巧言令色，鲜矣仁！吾日三省吾身，为人谋而不忠乎？与朋友交而不信乎？传不习乎？"
    "道千乘之国，敬事而信，节用而爱人，使民以时。弟子入则孝，出则弟，谨而信，泛爱众，而亲仁。行有余力，则以学文。"
)


def cleaned(text: str, **settings: Any) -> cleaner.Cleaned:
    return Cleaner(spec.Clean(**settings), NONE, False)(text)


def rule_of(text: str, **settings: Any) -> str | None:
    verdict = cleaned(text, **settings).verdict
    return verdict and verdict.rule


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("repair", "schÃ¶n und gut\nplain, 中文 stays", "schön und gut\nplain, 中文 stays"),
        ("repair", "itâ€™s so", "it’s so"),
        ("normalize", "cafe\u0301", "café"),
        ("controls", "a\x00b\u200bc\ufeff\x1b[31mred\x1b[0m\ttab\n中\ue000文", "abcred\ttab\n中文"),
        ("controls", "\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
        ("whitespace", "a  \r\n\r\n\n\n b\u3000\n\n", "a\n\n b"),
        ("email", "write to jane.doe+x@mail.example.org, not to @home or a@b", "write to <email>, not to @home or a@b"),
        ("ip", "10.0.0.254 and fe80::1:2 at 12:30:45, of 1.2.3.4.5", "<ip> and <ip> at 12:30:45, of 1.2.3.4.5"),
        ("phone", "call +44 20 7946 0958, (555) 123-4567 or 13912345678; in 1984-2001", "call <phone>, <phone> or <phone>; in 1984-2001"),
    ],
)  # fmt: skip
def test_a_step_repairs_what_it_is_for_and_leaves_the_rest(step: str, before: str, after: str) -> None:
    steps = repair.steps(spec.Clean(private=["email", "ip", "phone"]))
    assert steps[step](before) == after
    assert steps[step](after) == after


def test_what_a_step_changed_is_told_by_its_bit() -> None:
    clean = spec.Clean(rules=[])
    done = cleaned("cafe\u0301 \n", rules=[])
    assert [name for bit, name in enumerate(cleaner.changes(clean)) if done.changed >> bit & 1] == ["normalize", "whitespace"]


def test_words_of_chinese_are_characters_and_of_english_runs_of_letters() -> None:
    assert Words("The cat's 3rd café. 天氣好, ok").all == ["the", "cat's", "3rd", "café", "天", "氣", "好", "ok"]
    assert (Words(CHINESE).unit, Words(ENGLISH).unit) == (2, 1)


def test_sequences_of_words_are_told_by_their_words() -> None:
    grams = Words("a b c d a b c e").grams(3)
    assert (grams[0] == grams[4], len(set(grams.tolist()))) == (True, 5)
    assert len(Words("a b").grams(3)) == 1
    assert len(Words("").grams(3)) == 0


@pytest.mark.parametrize(
    ("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh"), ("これはペンです。とても良い天気ですね。", "ja"), ("12 34", "?")]
)
def test_languages(text: str, language: str) -> None:
    assert cleaned(text).language == language


def test_good_text_passes_in_both_languages() -> None:
    for text in (ENGLISH, CHINESE):
        assert cleaned(text, rules=["gopher", "repetition", "c4"], languages=["en", "zh"]).verdict is None
    assert rule_of(ENGLISH, languages=["zh"]) == rule_of(CHINESE, languages=["en"]) == "language"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The cat sat on the mat.", "words"),
        ("学而时习之，不亦说乎？", "words"),
        ("a I x to " * 40, "mean word"),
        (ENGLISH.replace(" ", " # "), "symbols"),
        ("\n".join(f"- {part}" for part in ENGLISH.split(".")), "bullets"),
        ("\n".join(f"• {part}" for part in CHINESE.split("。")), "bullets"),
        ("\n".join(f"{part} ..." for part in ENGLISH.split(",")), "ellipses"),
        (" ".join(f"{word} 1234 56789" for word in ENGLISH.split()), "letters"),
        (NO_STOP_WORDS, "stop words"),
        (NO_FUNCTION_CHARACTERS, "stop words"),
        (f"{ENGLISH}\n" * 3, "repeated lines"),
        (f"{CHINESE}\n" * 3, "repeated lines"),
        (f"{ENGLISH} {ENGLISH}", "repeated 5-grams"),
        (f"{CHINESE}{CHINESE}", "repeated 5-grams"),
        (ENGLISH + " the great house" * 30, "top 2-gram"),
    ],
)  # fmt: skip
def test_each_rule_drops_what_it_is_for(text: str, rule: str) -> None:
    assert rule_of(text) == rule


def test_rules_of_the_web_leave_lines_out_before_they_judge() -> None:
    web = "Home | About | Contact\n" + ENGLISH.replace(". ", ".\n") + "\nWe use cookies on this site to be of help.\n"
    done = cleaned(web, rules=["c4"])
    assert done.text == ENGLISH.replace(". ", ".\n")
    assert cleaner.changes(spec.Clean(rules=["c4"]))[-1] == "lines"
    assert cleaned("首页\n" + CHINESE.replace("。", "。\n"), rules=["c4"]).text == CHINESE.replace("。", "。\n").strip("\n")
    assert rule_of("This line has enough words in it.", rules=["c4"]) == "sentences"
    assert rule_of(ENGLISH + " lorem ipsum.", rules=["c4"]) == "lorem ipsum"
    assert rule_of(ENGLISH + " if (x) { y }.", rules=["c4"]) == "curly brackets"


def test_bounds_are_set_by_language_over_those_for_all() -> None:
    short = {"*": spec.Limits(words=[1, 10]), "en": spec.Limits(words=[3, 200])}
    assert rule_of(ENGLISH, limits=short) is None
    verdict = cleaned(CHINESE, limits=short).verdict
    assert verdict == rules.Verdict("words", len(Words(CHINESE).all), 10)


def test_signatures_estimate_the_share_of_words_in_common() -> None:
    sign = near.signer()
    words = [f"w{number}" for number in range(2000)]
    one, other = Words(" ".join(words)).grams(5), Words(" ".join(words[:1800] + [f"v{number}" for number in range(200)])).grams(5)
    exact = len(np.intersect1d(one, other)) / len(np.union1d(one, other))
    assert abs((sign(one) == sign(other)).mean() - exact) < 0.1
    assert np.array_equal(sign(one), sign(one[::-1].copy()))


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_pairs_that_are_just_similar_enough(similarity: float) -> None:
    rows = near.rows_of_a_band(similarity)
    chance = np.random.default_rng(1)
    one = chance.integers(0, 2**32, (1500, near.MINIMA), dtype=np.uint32)
    other = np.where(chance.random(one.shape) < similarity, one, chance.integers(0, 2**32, one.shape, dtype=np.uint32))
    found = (near.bands(one, rows) == near.bands(other, rows)).any(axis=0)
    assert found.mean() > 1 - 2 * near.MISSED


def told(tmp_path: Path, texts: list[str], **settings: Any) -> spec.Data:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    usual = {"corpus": [str(path)], "tokenizer": spec.Tokenizer(train=280), "prepared": str(tmp_path / "prepared"), "workers": 1}
    return spec.Data(**{**usual, "sequence": 16, "clean": spec.Clean(rules=[]), **settings})


def prose(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Documents that have hardly five words in a row in common."""
    chance = random.Random(seed)
    vocabulary = [a + b for a in ("ba", "do", "mi", "ru", "ke", "lo") for b in ("tan", "ser", "lig", "mop", "fen", "wad", "nix")]
    return [" ".join(chance.choices(vocabulary, k=words)) for _ in range(count)]


def fates(prepared: Prepared) -> list[str]:
    lineage = prepared.manifest.lineage
    assert lineage is not None
    return [lineage.reasons[reason - 1] if reason else "kept" for reason in prepared.records()["reason"].tolist()]


def test_duplicates_are_dropped_and_name_the_first(tmp_path: Path) -> None:
    texts = prose(40)
    edited = texts[3].rsplit(" ", 2)[0] + " another end"
    prepared = prepare.prepare(told(tmp_path, [*texts, texts[5] + "  ", edited, *prose(1, seed=9), "!!!", "???"]))
    assert fates(prepared) == ["kept"] * 40 + ["duplicate", "near-duplicate", "kept", "kept", "kept"]
    rows = prepared.records()
    assert rows["twin"][40:].tolist() == [5, 3, -1, -1, -1]
    assert rows["value"][41] >= 0.8
    assert prepared.documents("train") + prepared.documents("validation") + prepared.documents("test") == 43
    assert fates(prepare.prepare(told(tmp_path, [*texts, texts[5]], clean=spec.Clean(rules=[], duplicates="keep")))) == ["kept"] * 41


@pytest.mark.slow
@pytest.mark.parametrize(("within", "dropped"), [("corpus", 8), ("source", 0)])
def test_duplicates_across_sources(tmp_path: Path, within: str, dropped: int) -> None:
    data = told(tmp_path, prose(40), clean=spec.Clean(rules=[], within=within))
    other = tmp_path / "other.txt"
    other.write_text("\f".join(prose(40)[:8] + prose(8, seed=5)))
    both = data.model_copy(update={"corpus": [*data.corpus, spec.Source(path=str(other), name="other")]})
    assert fates(prepare.prepare(both)).count("duplicate") == dropped


def test_what_shares_a_sequence_with_an_evaluation_set_is_dropped(tmp_path: Path) -> None:
    texts = prose(40)
    chinese = CHINESE * 2
    (tmp_path / "eval.txt").write_text("Question: " + " ".join(texts[7].split()[20:33]) + "?")
    elsewhere = store.at("memory://evaluation-sets")
    elsewhere.write("chinese.txt", CHINESE[30:70].encode())
    clean = spec.Clean(rules=[], against=[str(tmp_path / "eval.txt"), elsewhere.url("*.txt")], duplicates="keep")
    prepared = prepare.prepare(told(tmp_path, [*texts, chinese], clean=clean))
    assert [number for number, fate in enumerate(fates(prepared)) if fate == "evaluation set"] == [7, 40]
    assert prepared.records()["value"][7] == 1


def corpus(tmp_path: Path) -> list[str]:
    return [*prose(60), *(text + " x" for text in prose(30)), "short", "\x00" + ENGLISH, CHINESE, ENGLISH]


def test_many_processes_do_what_one_does_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = spec.Clean(limits={"*": spec.Limits(words=[20, 1000], stop_words=0, mean_word=[1, 9])})
    one = prepare.prepare(told(tmp_path, corpus(tmp_path), clean=clean))
    monkeypatch.setattr(chunks, "SMALLEST", 3000)
    many = prepare.prepare(told(tmp_path, corpus(tmp_path), clean=clean, workers=2, prepared=str(tmp_path / "again")))
    assert many.fingerprint == one.fingerprint
    assert (many.folder / records.DOCUMENTS).read_bytes() == (one.folder / records.DOCUMENTS).read_bytes()
    assert {"kept", "near-duplicate", "words", "duplicate"} <= set(fates(one))


@pytest.mark.parametrize("library", ["ftfy", "py3langid.langid", "rensa"])
def test_a_library_that_is_missing_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    languages.identifier.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"needs {library.split('.')[0]}: pip install 'plait\[clean\]'"):
        Cleaner(spec.Clean(), NONE, True)


KILLED = """
import os, signal, sys
from plait import spec
from plait.data import chunks, prepare
chunks.SMALLEST = 3000
heard = 0
def listener(progress):
    global heard
    heard += progress.stage == sys.argv[2]
    if heard == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
prepare.prepare(spec.Data.model_validate_json(sys.argv[1]), listener=listener)
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "heard"), [("cleaning", 4), pytest.param("comparing", 1, marks=SLOW), pytest.param("tokenising", 3, marks=SLOW)]
)
def test_a_killed_cleaning_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, heard: int) -> None:
    monkeypatch.setattr(chunks, "SMALLEST", 3000)
    data = told(tmp_path, corpus(tmp_path))
    undisturbed = prepare.prepare(data.model_copy(update={"prepared": str(tmp_path / "undisturbed")}))
    killed = subprocess.run([sys.executable, "-c", KILLED, data.model_dump_json(), stage, str(heard)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert prepare.find(data) is None
    stands = {path.name: path.stat().st_mtime_ns for path in Path(data.prepared).glob("*.making/pieces/*.np?")}
    assert stands
    done = sorted(path.name.split(".")[0] for path in Path(data.prepared).glob("*.making/pieces/*.study.npz"))
    if stage == "cleaning":  # as where one worker was slower than the others
        next(Path(data.prepared).glob(f"*.making/pieces/{done[0]}.study.npz")).unlink()
        assert len(done) > 1
        done = done[1:]
    asked: list[int] = []
    original = worker.Workers.study

    def spy(self: worker.Workers, folder: Path, chunk: chunks.Chunk, *rest: Any) -> Any:
        asked.append(chunk.number)
        return original(self, folder, chunk, *rest)

    monkeypatch.setattr(worker.Workers, "study", spy)
    prepared = prepare.prepare(data)
    prepared.verify()
    assert prepared.fingerprint == undisturbed.fingerprint
    assert np.array_equal(prepared.records(), undisturbed.records())
    assert not {int(name) for name in done} & set(asked)
    assert bool(asked) == (stage == "cleaning")
    assert not list(Path(data.prepared).glob("**/*.part"))


def test_a_library_that_is_missing_is_told_before_any_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "Workers", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: None)
    with pytest.raises(DataError, match=r"data.clean: near-duplicates needs rensa: pip install 'plait\[clean\]'"):
        prepare.prepare(told(tmp_path, prose(3)))


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ({"languages": ["english"]}, "'english' is no code of a language"),
        ({"limits": {"Chinese": {}}}, "'Chinese' is no code of a language"),
        ({"limits": {"en": {"words": [9, 3]}}}, r"limits.en.words = \[9.0, 3.0\] is \[fewest, most\]"),
    ],
)
def test_settings_that_make_no_sense(clean: dict[str, Any], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        spec.parse({"data": {"corpus": ["a"], "clean": clean}, "train": {"duration": "1 steps"}})
