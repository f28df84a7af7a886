"""TLS and authentication, where a server has them: who is trusted comes in, and who is not is told so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait import store
from plait.errors import PlaitError, StorageError
from plait.store import documents
from tests.store import servers

PASSWORD = "correct-horse"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem, which is its own authority, and key.pem."""
    folder = tmp_path_factory.mktemp("certificate")
    command = [servers.program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    os.chmod(folder / "key.pem", 0o644)  # memcached gives up its rights
    folder.chmod(0o755)
    return folder


def refused(url: str, message: str) -> None:
    home = store.at(url)
    with pytest.raises(PlaitError, match=message) as error:
        home.write("x", b"content")
    assert PASSWORD not in str(error.value)


@pytest.fixture
def redis(tmp_path: Path, certificate: Path) -> Iterator[str]:
    """With TLS, and two users: one may do all, one may only read."""
    (tmp_path / "users").write_text(
        f"user default off\nuser writer on >{PASSWORD} ~* +@all\nuser reader on >{PASSWORD} ~* +@read +@connection\n"
    )
    tls, cert, key = servers.free_port(), certificate / "cert.pem", certificate / "key.pem"
    more = ["--tls-port", str(tls), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no"]
    with servers.running(servers.redis(tmp_path, *map(str, more), "--aclfile", str(tmp_path / "users"))):
        yield f"rediss://127.0.0.1:{tls}/0"


def test_redis_by_tls_and_user(redis: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_USERNAME", "writer")
    monkeypatch.setenv("REDISCLI_AUTH", PASSWORD)
    refused(redis, "certificate verify failed")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    store.at(redis).write("x", b"content")
    assert store.at(redis.replace("://", "://writer@")).read("x") == b"content"
    refused(redis.replace("://", "://reader@"), "permission denied: who asks may not write there")
    monkeypatch.setenv("REDISCLI_AUTH", "wrong-password")
    refused(redis, "the credentials were refused; they are looked for in REDIS_USERNAME and REDISCLI_AUTH")


def test_memcached_by_tls(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["-Z", "-o", f"ssl_chain_cert={certificate}/cert.pem,ssl_key={certificate}/key.pem"]
    with servers.running(servers.memcached(tmp_path, *more)) as server:
        url = server.url.replace("memcached:", "memcacheds:")
        refused(url, "certificate verify failed")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        home = store.at(url)
        home.write("x", b"content")
        assert home.read("x") == b"content"


def test_cassandra_by_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.running(servers.cassandra(tmp_path, "writer", PASSWORD)) as server:
        (tmp_path / "cqlshrc").write_text(f"[authentication]\nusername = writer\npassword = {PASSWORD}\n")
        refused(server.url, "cannot write|credentials were refused")
        monkeypatch.setenv("CQLSHRC", str(tmp_path / "cqlshrc"))
        home = store.at(server.url)
        home.write("x", b"content")
        assert home.read("x") == b"content"
        home.close()
        monkeypatch.setenv("CASSANDRA_PASSWORD", "wrong-password")
        refused(server.url, "the credentials were refused; they are looked for in CASSANDRA_USERNAME and CASSANDRA_PASSWORD")
        with pytest.raises(StorageError, match="the credentials were refused"):
            documents.download(f"{server.url}/articles", ["body"], tmp_path / "rows")


@pytest.mark.slow
def test_mongodb_by_tls_and_user(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is made before the server asks for one."""
    import pymongo

    with servers.running(servers.mongodb(tmp_path)) as open_to_all, pymongo.MongoClient(open_to_all.url.rpartition("/")[0]) as client:
        client["admin"].command("createUser", "writer", pwd=PASSWORD, roles=["root"])
        open_to_all.stop()
    more = ["--auth", "--tls-cert-file", str(certificate / "cert.pem"), "--tls-key-file", str(certificate / "key.pem")]
    server = servers.mongodb(tmp_path, *more)
    server.ready = servers.connects(int(server.url.partition("127.0.0.1:")[2].partition("/")[0]))
    with servers.running(server):
        url = f"{server.url}?tls=true"
        monkeypatch.setenv("MONGODB_USERNAME", "writer")
        monkeypatch.setenv("MONGODB_PASSWORD", PASSWORD)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        home = store.at(url)
        home.write("x", b"content")
        assert home.read("x") == b"content"
        monkeypatch.setenv("MONGODB_PASSWORD", "wrong-password")
        refused(url, "the credentials were refused; they are looked for in MONGODB_USERNAME and MONGODB_PASSWORD")
