"""The same run file under torchrun, mpirun and srun: rank 0 keeps the ledger, and the curve is the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from plait import spec
from plait.cluster.nursery import Nursery
from plait.tasks.pretrain import train
from plait.train import manifest
from tests.runs import differences, steps_of, tiny

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "plait"]
MPIRUN = [
    shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
    "-n",
    "2",
    "--allow-run-as-root",
    "--oversubscribe",
    "--mca",
    "btl",
    "self,tcp",
    "--mca",
    "btl_tcp_if_include",
    "lo",
]


@pytest.fixture
def run(corpus: Path, prepared: Path) -> spec.Run:
    return tiny(corpus, prepared, layout__replicas=2)


@pytest.fixture
def run_file(run: spec.Run, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(run.resolved()))
    return path


def start(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_torchrun_draws_the_same_curve(run: spec.Run, run_file: Path, tmp_path: Path, nursery: Nursery) -> None:
    process = start([*TORCHRUN, "train", str(run_file), "--out", str(tmp_path / "torchrun")])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    train(run, tmp_path / "local", nursery=nursery)
    loss, grad_norm = differences(steps_of(tmp_path / "local"), steps_of(tmp_path / "torchrun"))
    assert loss <= 1e-9
    assert grad_norm <= 1e-7


@pytest.mark.slow
def test_under_torchrun_processes_are_ranks_of_a_spread_replica(run: spec.Run, run_file: Path, tmp_path: Path, nursery: Nursery) -> None:
    process = start([*TORCHRUN, "train", str(run_file), "layout.replicas=1", "layout.tensor=2", "--out", str(tmp_path / "torchrun")])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "1 replica of tensor 2" in output
    train(run, tmp_path / "local", nursery=nursery)
    loss, grad_norm = differences(steps_of(tmp_path / "local"), steps_of(tmp_path / "torchrun"))
    assert loss <= 1e-9
    assert grad_norm <= 1e-7


@pytest.mark.slow
def test_under_torchrun_the_last_process_is_a_parameter_server(run: spec.Run, run_file: Path, tmp_path: Path, nursery: Nursery) -> None:
    process = start([*TORCHRUN, "train", str(run_file), "layout.replicas=1", "sync.strategy=server", "--out", str(tmp_path / "torchrun")])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    train(run, tmp_path / "local", nursery=nursery)
    loss, grad_norm = differences(steps_of(tmp_path / "local"), steps_of(tmp_path / "torchrun"))
    assert loss <= 1e-9
    assert grad_norm <= 1e-7


def test_torchrun_with_another_number_of_processes_is_refused_by_all(run_file: Path, tmp_path: Path) -> None:
    process = start([*TORCHRUN, "train", str(run_file), "layout.replicas=3", "--out", str(tmp_path / "out")])
    output, _ = process.communicate(timeout=120)
    assert "layout.replicas = 3, but torchrun started 2 processes" in output
    assert "exitcode  : 2" in output


def start_both(run_file: Path, out: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Open MPI's variables without Open MPI, so that this runs everywhere; the real one is below."""
    job = uuid.uuid4().hex
    return [
        start(
            [sys.executable, "-m", "plait", "train", str(run_file), *overrides, "--out", str(out)],
            {
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "PMIX_NAMESPACE": job,
            },
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_processes_that_mpirun_would_start_find_each_other_by_a_file(run_file: Path, tmp_path: Path) -> None:
    processes = start_both(run_file, tmp_path / "out")
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [step.step for step in steps_of(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]
    assert sum("finished after step 6" in output for output in outputs) == 1  # rank 0 alone writes the log


@pytest.mark.slow
def test_a_failing_rank_is_shown_once_and_ends_all(run_file: Path, tmp_path: Path) -> None:
    processes = start_both(run_file, tmp_path / "out", "balance.capacity=[0.0, 1.0]", "train.loss=tests.wrong:failing")
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert "plait: replica 1 rank 0: Traceback" in outputs[0]
    assert "Traceback" not in outputs[1]


@pytest.mark.slow
def test_one_ranks_sigterm_saves_and_stops_all(run_file: Path, tmp_path: Path) -> None:
    processes = start_both(run_file, tmp_path / "out", "train.duration=5000 steps")
    wait_for(lambda: bool(steps_of(tmp_path / "out")))
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert manifest.latest(tmp_path / "out" / "checkpoints") is not None


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(MPIRUN[0] is None, reason="Open MPI is not installed")
@pytest.mark.slow
def test_mpirun(run_file: Path, tmp_path: Path) -> None:
    process = start([*MPIRUN, sys.executable, "-m", "plait", "train", str(run_file), "--out", str(tmp_path / "out")])
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert len(steps_of(tmp_path / "out")) == 6
    joined = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines() if '"Joined"' in line]
    assert sorted(event["replica"] for event in joined) == [0, 1]
