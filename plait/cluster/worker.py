"""A worker: one process, one rank of one replica, or the parameter server."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store

from plait import __version__, spec
from plait.cluster.config import Config
from plait.cluster.signals import Signals
from plait.data.batches import Batches, EvaluationBatches
from plait.data.tokens import Prepared
from plait.errors import UserError
from plait.ledger.messages import SERVER, Failed, Join
from plait.ledger.wire import LedgerClient, RunClosed
from plait.replica import device as devices
from plait.replica.dynamo import leave_out_of_optimizers
from plait.replica.fit import largest_micro_batch
from plait.replica.mesh import ALONE, Mesh, leave_mesh, make_mesh
from plait.replica.replica import Replica
from plait.replica.schedule import rate
from plait.sync.allreduce import AllReduce
from plait.sync.group import local_store, make_group, network_store
from plait.sync.server import Server, ServerSync
from plait.sync.strategy import PeerLost, Rate, Sync
from plait.train.duties import Duties, resume
from plait.train.folder import read_about
from plait.train.loop import Loader, train


def main(values: dict[str, Any]) -> int:
    """Train as the config says; returns the exit status. A failure is told to the ledger with its traceback."""
    config = Config(**{**values, "member": tuple(values["member"])})
    ledger = LedgerClient(config.ledger, config.token, config.member)
    try:
        with Signals(hard=_stop_hard) as signals:
            Worker(config, ledger, signals).work()
        ledger.leave()
    except RunClosed:
        return 1
    except BaseException as error:
        ledger.tell(_failure(error))
        return 1
    finally:
        ledger.close()
    return 0


class Worker:
    """Builds what a rank needs, in the order in which it is read, and runs the loop."""

    def __init__(self, config: Config, ledger: LedgerClient, signals: Signals) -> None:
        self._config = config
        self._ledger = ledger
        self._signals = signals
        self._run = run = spec.parse(config.run)
        self._prepared = Prepared.open(Path(config.prepared), run.data)
        leave_out_of_optimizers()
        devices.set_threads(run.cluster.threads, config.workers_here)
        devices.keep_freed_memory()
        self._device = devices.choose(run.cluster.device, config.local_rank)
        self._batches = Batches(self._prepared.split("train", run.data.sequence), run.train, self._prepared.fingerprint)
        self._store = _open_store(config.store, run.layout.workers) if run.layout.workers > 1 else None
        self._mesh = self._join_mesh()
        self._replica = Replica(run, self._prepared.vocabulary, self._device, self._mesh)
        if config.resume:
            resume(self._replica, Path(config.resume))
        self._micro_batch = self._fitting()

    def work(self) -> None:
        hello = Join(socket.gethostname(), os.getpid(), devices.name(self._device), self._replica.held())
        duties = self._duties()
        if self._config.member == SERVER:
            self._serve(hello, duties)
        else:
            self._train(hello, duties)
        duties.finish()
        leave_mesh(self._mesh)

    def _join_mesh(self) -> Mesh:
        replica, rank = self._config.member
        if self._run.layout.ranks == 1:
            return ALONE
        assert self._store is not None
        store = PrefixStore(f"replica-{replica}", self._store)
        return make_mesh(self._run.layout, rank, store, self._device, self._config.one_host)

    def _train(self, hello: Join, duties: Duties) -> None:
        sync = self._sync()
        loader = Loader(self._batches, self._micro_batch, self._mesh.lane)
        work = self._ledger.join(hello)
        train(work, self._ledger, sync, self._replica, loader, duties, self._rate(), self._signals.take)
        sync.close()

    def _serve(self, hello: Join, duties: Duties) -> None:
        assert self._config.server is not None
        server = Server(self._config.server, self._config.token, self._replica, self._run.layout.replicas)
        self._ledger.join(hello)
        server.serve(self._ledger, duties.perform)
        server.close()

    def _sync(self) -> Sync:
        if self._config.server is not None:
            return ServerSync(self._config.server, self._config.token, self._config.member)
        replicas = self._run.layout.replicas
        if replicas == 1:
            return AllReduce(None, self._rate())
        assert self._store is not None
        replica, rank = self._config.member
        rests = next(iter(self._replica.parameters.values())).device  # gradients too; on the host where they are offloaded
        group = make_group(PrefixStore(f"rank-{rank}", self._store), replica, replicas, 1, rests, self._config.one_host)
        return AllReduce(group, self._rate())

    def _duties(self) -> Duties:
        run, member = self._run, self._config.member
        serving = self._config.server is not None
        saves = member == SERVER if serving else member[0] == 0
        out = Path(self._config.folder)
        about = {
            "version": __version__,
            "revision": read_about(out)["revision"],
            "run": run.resolved(),
            "fingerprint": self._prepared.fingerprint,
        }
        folder = out / "checkpoints"
        return Duties(self._replica, self._ledger, folder, run.checkpoint.keep, about, self._validation(), self._micro_batch, saves)

    def _validation(self) -> EvaluationBatches | None:
        if self._run.train.evaluate_every is None:
            return None
        split = self._prepared.split("validation", self._run.data.sequence)
        return EvaluationBatches(split, self._run.train.evaluate_sequences)

    def _rate(self) -> Rate:
        train, batches = self._run.train, self._batches
        warmup = batches.steps_of(train.schedule.warmup)
        decay = batches.steps_of(train.schedule.decay) if train.schedule.decay else max(1, batches.steps // 5)
        return lambda step: rate(train.schedule, train.optimizer.lr, step, batches.steps, warmup, decay)

    def _fitting(self) -> int:
        micro_batch = self._run.train.micro_batch
        if micro_batch != "auto":
            return micro_batch
        share = -(-self._run.train.largest_batch // self._run.layout.replicas)
        first = self._batches.read(1, 0, min(2, self._batches.size(1)))
        return largest_micro_batch(self._replica, first, share, self._config.workers_here)


def _failure(error: BaseException) -> Failed:
    if isinstance(error, UserError):
        return Failed(str(error), "user")
    return Failed(traceback.format_exc(), "peer" if isinstance(error, PeerLost) or _is_lost_peer(error) else "itself")


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective inside the replica broke since its other end is gone: torch has no error of its own for that."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _PEER_GONE)


_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")


def _open_store(address: str, members: int) -> Store:
    if "/" in address:
        return local_store(Path(address), members)
    host, _, port = address.rpartition(":")
    return network_store(host, int(port), members, serving=False)


def _stop_hard() -> None:
    print("interrupted twice: stopping at once", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
