"""URLs: taken apart, and refused where they cannot be used or hold a secret."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from plait import spec, store
from plait.errors import RunFileError, StorageError
from plait.spec.places import redacted
from plait.store import trouble
from plait.store.location import parse


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("runs/x", ("file", "", None, "runs/x")),
        ("file:///data/a%20b", ("file", "", None, "/data/a b")),
        ("s3://My-Bucket/a/b/", ("s3", "My-Bucket", None, "a/b")),
        ("hdfs://name:8020/a", ("hdfs", "name", 8020, "a")),
        ("hdfs:///a", ("hdfs", "", None, "a")),
        ("redis://me@cache:6380/2/p", ("redis", "cache", 6380, "2/p")),
    ],
)
def test_a_url_in_its_parts(url: str, parts: tuple[Any, ...]) -> None:
    location = parse(url)
    assert (location.scheme, location.host, location.port, location.path) == parts


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s4://bucket/x", r"s4://bucket/x: 's4' is no storage system that is known here; did you mean s3://\?"),
        ("ftp://host/x", "'ftp' is no storage system that is known here; known are file, memory, s3, gs"),
        ("s3:///x", r"s3:///x: names no bucket; write s3://BUCKET/PATH"),
        ("file://host/x", "names a host; write file:///path"),
        ("redis://host/abc", "'abc' is no database; write redis://HOST/0/abc"),
        ("webhdfs://host:abc/x", "Port could not be cast"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, why: str) -> None:
    with pytest.raises(StorageError, match=why):
        store.at(url)


SECRETS = [
    "s3://me:hunter2@bucket/x",
    "mongodb://me:hunter2@host/db",
    "s3://bucket/x?X-Amz-Signature=hunter2&list=1",
    "redis://:hunter2@host/0",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_secret_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(StorageError, match="holds a secret") as refused:
        store.at(url)
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in redacted(f"could not reach {url}, twice")


@pytest.mark.parametrize("setting", ["prepared = '{}'", "corpus = ['{}']", "corpus = [{{ path = '{}' }}]"])
def test_a_run_file_with_a_secret_is_refused_saying_where_it_belongs(tmp_path: Path, setting: str) -> None:
    corpus = "" if "corpus" in setting else "corpus = ['x.txt']\n"
    (tmp_path / "run.toml").write_text(f"[data]\n{corpus}{setting.format(SECRETS[0])}\n[train]\nduration = '1 steps'\n")
    with pytest.raises(RunFileError, match="it belongs in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as refused:
        spec.load(tmp_path / "run.toml")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/x", "s3"), ("gs://b/x", "gcs"), ("hdfs://h/x", "hdfs"), ("memcached://h", "memcached")]
)
def test_a_missing_driver_is_named_with_its_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=rf"{url}: needs \w+, which is not installed: pip install 'plait\[{extra}\]'"):
        store.at(url)


def test_what_a_driver_says_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_PASSWORD", "swordfish")
    error = OSError("auth with swordfish at mongodb://me:hunter2@host failed")
    told = trouble.told(parse("s3://bucket"), "x", "read", error, "failed")
    assert str(told) == "s3://bucket/x: cannot read: auth with *** at mongodb://me:***@host failed"
