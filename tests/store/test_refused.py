"""Who may not, is told so: refused credentials, denied permissions, missing buckets, servers that are gone."""

from __future__ import annotations

import json
import sys

import pytest

from plait import cli, store
from plait.errors import StorageError, StorageFailed
from tests.store import servers
from tests.store.park import Park


@pytest.fixture
def s3(park: Park, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in park("s3").environment.items():
        monkeypatch.setenv(name, value)
    store.at("s3://plait/refused").write("there", b"content")
    return monkeypatch


@pytest.mark.parametrize(("name", "value"), [("AWS_ACCESS_KEY_ID", "somebody"), ("AWS_SECRET_ACCESS_KEY", "not-the-secret")])
def test_refused_credentials_say_where_they_are_looked_for(s3: pytest.MonkeyPatch, name: str, value: str) -> None:
    s3.setenv(name, value)
    home = store.at("s3://plait/refused")
    for do in (lambda: home.read("there"), lambda: home.write("x", b""), home.entries):
        with pytest.raises(StorageError, match="the credentials were refused; they are looked for in AWS_ACCESS_KEY_ID") as refused:
            do()
        assert value not in str(refused.value)


def test_who_may_only_read_is_denied_the_rest(s3: pytest.MonkeyPatch) -> None:
    for name, value in servers.s3_environment("", servers.READER).items():
        if value:
            s3.setenv(name, value)
    home = store.at("s3://plait/refused")
    assert home.read("there") == b"content"
    with pytest.raises(StorageError, match="s3://plait/refused/x: permission denied: who asks may not write there"):
        home.write("x", b"")
    with pytest.raises(StorageError, match="may not delete there"):
        home.delete("there")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_named() -> None:
    with pytest.raises(StorageError, match="s3://absent/x/there: there is no bucket 'absent'"):
        store.at("s3://absent/x").read("there", 0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["hdfs", "webhdfs"])
def test_hdfs_denies_what_belongs_to_another(system: str, park: Park, monkeypatch: pytest.MonkeyPatch) -> None:
    import hdfs_native

    server = park(system)
    for name, value in park("hdfs").environment.items():
        monkeypatch.setenv(name, value)
    store.at(f"{server.url}/owned").write("x", b"content")
    hdfs_native.Client(park("hdfs").url.removesuffix("/store")).set_permission("/store/owned", 0o700)
    monkeypatch.setenv("HADOOP_USER_NAME", "stranger")
    home = store.at(f"{server.url}/owned")
    with pytest.raises(StorageError, match="owned/x: permission denied: who asks may not read there"):
        home.read("x")
    with pytest.raises(StorageError, match="owned/y: permission denied: who asks may not write there"):
        home.write("y", b"")


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
def test_a_server_that_is_gone_failed_and_may_come_back(scheme: str) -> None:
    home = store.at(f"{scheme}://127.0.0.1:{servers.free_port()}")
    with pytest.raises(StorageFailed, match=f"{home.url('x')}: cannot read: .*refused"):
        home.read("x")


def check(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plait", "store", "check", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_the_command_ends_by_what_is_wrong(s3: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(s3, "s3://plait/checked", "--json") == 0
    assert {each["state"] for each in json.loads(capsys.readouterr().out)} == {"ok"}
    assert check(s3, "memory://x") == 0
    assert "MB/s" in capsys.readouterr().out
    assert check(s3, f"redis://127.0.0.1:{servers.free_port()}/0") == 1
    s3.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert check(s3, "s3://plait/checked") == 2
    assert "plait: s3://plait/checked/plait-check-" in capsys.readouterr().err
