"""A worker: one process, one rank of one replica, or the parameter server."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, ProcessGroup, Store

from plait import __version__, spec
from plait.cluster.config import Config
from plait.cluster.plans import cost_of
from plait.cluster.pulse import Pulse
from plait.cluster.signals import Signals
from plait.data import kept
from plait.data.batches import Batches, EvaluationBatches
from plait.data.tokens import Prepared
from plait.errors import RunFileError, UserError
from plait.ledger.messages import SERVING, Failed, Join
from plait.ledger.progress import progress
from plait.ledger.wire import LedgerClient, RunClosed
from plait.replica import device as devices
from plait.replica.dynamo import leave_out_of_optimizers
from plait.replica.fit import largest_micro_batch
from plait.replica.mesh import ALONE, Mesh, leave_mesh, make_mesh
from plait.replica.pruning import sparsity
from plait.replica.replica import Replica
from plait.replica.schedule import rate
from plait.sync import link
from plait.sync.allreduce import AllReduce
from plait.sync.compress import build_codec
from plait.sync.group import local_store, make_group, network_store
from plait.sync.line import Listener
from plait.sync.local import LocalSteps
from plait.sync.peers import Peers
from plait.sync.phases import Phases
from plait.sync.pushpull import PushPull
from plait.sync.reduce import Reducer
from plait.sync.server import Server
from plait.sync.strategy import PeerLost, Rate, Sparsity, Sync
from plait.train.base import base_of
from plait.train.duties import Duties, resume
from plait.train.folder import read_about
from plait.train.loop import Loader, train
from plait.train.sentences import Sentences


def main(values: dict[str, Any]) -> int:
    """Train as the config says; returns the exit status. A failure is told to the ledger with its traceback."""
    progress("starts")
    config = Config(**{**values, "member": tuple(values["member"])})
    ledger = LedgerClient(config.ledger, config.token, config.member)
    try:
        hang_after = config.run["elastic"]["hang_after"]
        with Signals(hard=_stop_hard) as signals, Pulse(config.ledger, config.token, config.member, hang_after) as pulse:
            if config.member[0] == SERVING:
                _serve(config, ledger)
            else:
                worker = Worker(config, ledger, signals)
                pulse.on_void = worker.abort
                worker.work()
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
        kept.waiting = progress  # who waits for a storage system does not hang
        self._prepared = Prepared.open(Path(config.prepared), run.data)
        leave_out_of_optimizers()
        devices.set_threads(run.cluster.threads, config.workers_here)
        devices.keep_freed_memory()
        self._device = devices.choose(run.cluster.device, config.local_rank)
        self._batches = Batches(self._prepared.split("train", run.data.sequence), run.train, self._prepared.fingerprint, run.data.skip)
        self._mesh = self._join_mesh()
        self._replica = Replica(run, run.model.rows(self._prepared.vocabulary), self._device, self._mesh, base_of(run))
        self._peers = self._peers_of(self._replica)
        self._sync = self._agree()
        if config.resume:
            resume(self._replica, Path(config.resume), self._sync)
        self._micro_batch = self._fitting()

    def work(self) -> None:
        hello = Join(socket.gethostname(), os.getpid(), devices.name(self._device), self._replica.held())
        duties = self._duties()
        loader = Loader(self._batches, self._micro_batch, self._mesh.lane, cost_of(self._run, self._prepared.vocabulary))
        begin = self._ledger.join(hello)
        train(begin, self._ledger, self._sync, self._replica, loader, duties, self._rate(), self._signals.take)
        self._sync.close()
        duties.finish()
        leave_mesh(self._mesh)

    def abort(self) -> None:
        """From another thread: let nobody wait for a peer that is gone."""
        self._peers.abort()

    def _join_mesh(self) -> Mesh:
        replica, rank = self._config.member
        if self._run.layout.ranks == 1:
            return ALONE
        store = _open_store(self._config.store, f"replica-{replica}-{self._config.attempt}")
        return make_mesh(self._run.layout, rank, store, self._device, self._config.one_host)

    def _peers_of(self, replica: Replica) -> Peers:
        """The same rank of all replicas, for phases that have them talk to each other."""
        number, rank = self._config.member
        rests = replica.assembly.leaves[0].parameter.device  # gradients too; on the host where they are offloaded

        def make(place: int, size: int, generation: int) -> ProcessGroup:
            store = _open_store(self._config.store, f"generation-{generation}-{rank}")
            return make_group(store, place, size, rests, self._config.one_host)

        return Peers(number, self._run.layout.replicas, self._ledger, make, rests, self._link())

    def _agree(self) -> Phases:
        strategies = [self._strategy(agreement) for agreement in self._run.sync.agreements]
        return Phases(strategies, self._peers, self._config.elastic)

    def _strategy(self, settings: spec.Agreement) -> Sync:
        run, rate = self._run, self._rate()
        codec = build_codec(settings.compress, settings.top_k or 0.01)
        if settings.strategy == "server":
            return PushPull(self._ledger, self._config.token, self._config.member, codec, self._link(), run.train.seed)
        reducer, peers = Reducer(None, codec, self._link(), run.train.seed), self._peers
        if settings.strategy == "allreduce":
            return AllReduce(reducer, peers, rate, self._sparsity())
        outer = (settings.outer_lr or 0.7, 0.9 if settings.outer_momentum is None else settings.outer_momentum)
        return LocalSteps(reducer, peers, rate, self._batches.targets, *(outer if settings.strategy == "diloco" else (1.0, 0.0)))

    def _link(self) -> link.Link | None:
        """A slow link, where one is to be emulated."""
        slow = self._run.sync.link
        return None if slow is None else link.Link(slow.latency / 1e3, slow.bandwidth * 2**20 if slow.bandwidth else None)

    def _duties(self) -> Duties:
        run = self._run
        out = Path(self._config.folder)
        about = {
            "version": __version__,
            "revision": read_about(out)["revision"],
            "run": run.resolved(),
            "fingerprint": self._prepared.fingerprint,
        }
        saves = self._config.member[0] == 0 or run.sync.serves or self._config.elastic
        folder = out / "checkpoints"
        checkpoints = folder, run.checkpoint.keep, about
        return Duties(
            self._replica, self._sync, self._ledger, *checkpoints, self._validation(), self._micro_batch, saves, self._sentences()
        )

    def _validation(self) -> EvaluationBatches | None:
        if self._run.train.evaluate_every is None:
            return None
        split = self._prepared.split("validation", self._run.data.sequence)
        return EvaluationBatches(split, self._run.train.evaluate_sequences)

    def _sentences(self) -> Sentences | None:
        count = self._run.train.evaluate_translations
        return None if count is None else Sentences(self._run, self._prepared, count)

    def _rate(self) -> Rate:
        train, batches = self._run.train, self._batches
        warmup = batches.steps_of(train.schedule.warmup)
        decay = batches.steps_of(train.schedule.decay) if train.schedule.decay else max(1, batches.steps // 5)
        return lambda step: rate(train.schedule, train.optimizer.lr, step, batches.steps, warmup, decay)

    def _sparsity(self) -> Sparsity:
        settings, batches = self._run.prune, self._batches
        if settings is None:
            return lambda step: None
        begin, every = batches.steps_of(settings.begin), 10 if settings.every is None else max(1, batches.steps_of(settings.every))
        end = begin if settings.end is None else batches.steps_of(settings.end)
        if not begin <= end <= batches.steps:
            raise RunFileError(f"prune: begins after step {begin} and ends after step {end} of {batches.steps}; it must lie within the run")
        return lambda step: sparsity(settings, step, begin, end, every)

    def _fitting(self) -> int:
        micro_batch = self._run.train.micro_batch
        if micro_batch != "auto":
            return micro_batch
        share = -(-self._run.train.largest_batch // self._run.layout.replicas)
        first = replace(self._batches.read(1, 0, min(2, self._batches.size(1))), filled=None)  # as long as any row is
        return largest_micro_batch(self._replica, first, share, self._config.workers_here)


def _serve(config: Config, ledger: LedgerClient) -> None:
    """A parameter server: it needs neither model nor data."""
    run = spec.parse(config.run)
    leave_out_of_optimizers()
    devices.set_threads(run.cluster.threads, config.workers_here)
    listener = Listener(config.listen, config.token)
    progress("serves", "ledger")
    ledger.tell(Join(socket.gethostname(), os.getpid(), "parameter server", 0, listener.address))
    Server(run, listener, ledger).serve()
    listener.close()


def _failure(error: BaseException) -> Failed:
    if isinstance(error, UserError):
        return Failed(str(error), "user")
    return Failed(traceback.format_exc(), "peer" if isinstance(error, PeerLost) or _is_lost_peer(error) else "itself")


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective inside the replica broke since its other end is gone: torch has no error of its own for that."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _PEER_GONE)


_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")


def _open_store(address: str, name: str) -> Store:
    """A meeting place of its own for each group: who dies amid a meeting leaves nothing behind in the next one."""
    if "/" in address:
        return local_store(Path(address), name)
    host, _, port = address.rpartition(":")
    return PrefixStore(name, network_store(host, int(port), serving=False))


def _stop_hard() -> None:
    print("interrupted twice: stopping at once", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
