"""Local steps: each replica trains on its own share for a round, then parameters are averaged.

    replica 0   step step step step ─┐ average          ┌ step step ...
    replica 1   step step step step ─┤ of differences ──┤ step step ...
                                     └─ vote ─► verdict ┘

With theta the parameters at the round's beginning, theta_r those of replica r at its end, and w_r its share of the round's target
tokens, every replica computes

    delta = sum over r of  w_r (theta - theta_r)            one all-reduce a round, in the buckets of gradients
    local_sgd   theta <- theta - delta                      the mean of the replicas' parameters
    diloco      theta <- theta - outer step along delta     SGD with Nesterov's momentum, 0.7 and 0.9 in the paper

The optimizer's state stays with its replica. In a round of one step of plain SGD, delta is lr times the gradient of the global
batch: local_sgd is then the same as all-reduce.

Sources: Stich 2019 (Local SGD); McMahan et al. 2017 (federated averaging); Douillard et al. 2023 (DiLoCo), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from plait.ledger.messages import Part, Verdict, Work
from plait.replica import device as devices
from plait.replica.optim import optimizer_state, reset_state, restore_state
from plait.replica.placed import placed
from plait.replica.replica import Replica
from plait.sync.deal import ByReplica, resize_buckets
from plait.sync.handing import Handing, hand_over
from plait.sync.peers import Peers
from plait.sync.reduce import Reducer
from plait.sync.strategy import Rate, Report, State, Targets, Traffic, Votes


class LocalSteps:
    """local_sgd, and with an outer rate and momentum diloco."""

    def __init__(self, reducer: Reducer, peers: Peers, rate: Rate, targets: Targets, outer_lr: float = 1.0, momentum: float = 0.0) -> None:
        self._reducer, self._peers = reducer, peers
        self._by_replica = ByReplica(peers)
        self._rate, self._targets = rate, targets
        self._outer_lr, self._momentum = outer_lr, momentum
        self._outer: torch.optim.SGD | None = None
        self._start: list[Tensor] = []
        self._before: dict[str, Any] = {}
        self._amid = False
        """whether steps of a round have changed what is here"""
        self._handing: Handing | None = None
        peers.follow(reducer.regroup)

    def meet(self, servers: list[str]) -> None:
        """None is needed."""

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        """The state comes with the first round, where it is not the one to begin with."""
        return verdict

    def enter(self, replica: Replica, owed: State) -> None:
        """What is owed was this replica's share of a sum; here gradients are its own means."""
        replica.gradients.owe({path: self._peers.size * value for path, value in owed.items()})
        self._reducer.residuals = {}
        parameters = list(replica.parameters.values())
        self._outer = torch.optim.SGD(parameters, lr=self._outer_lr, momentum=self._momentum, nesterov=self._momentum > 0)
        if self._momentum:
            for parameter in parameters:
                self._outer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self._start = [torch.empty_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        """Steps change what a new replica needs, so that it is handed over before the first of them."""
        self._handing = hand_over(self._peers, work, replica, self._outer_state(replica))
        if self._handing is not None:
            self._handing.finish()
        torch._foreach_copy_(self._start, list(replica.parameters.values()))
        if self._peers.size > 1:
            self._remember(replica)
        self._amid = True
        return None

    def end(self, part: Part, replica: Replica) -> float:
        """A step of this replica's own; left out where its gradient is not finite, and where it has no share."""
        replica.finish()
        squared_norm = replica.squared_norm()
        grad_norm = math.sqrt(replica.sum_over_ranks(squared_norm))
        if math.isfinite(grad_norm) and part.ranges:
            replica.apply(grad_norm, self._rate(part.step))
        return squared_norm

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        if self._handing is not None:
            self._handing.wait()
        self._take_differences(work, replica)
        traffic = self._reduce(work, replica)
        verdict = ledger.vote(report(traffic))
        committed = verdict.decision == "commit"
        self._reducer.keep(committed)
        if committed:
            self._step_outside(replica)
            self._amid = False
        return verdict

    @torch.no_grad()
    def void(self, replica: Replica) -> None:
        """Parameters and optimizer are as they were when the round began."""
        self._reducer.keep(False)
        if not self._amid:
            return
        torch._foreach_copy_(list(replica.parameters.values()), self._start)
        if self._before:
            restore_state(replica.optimizer, replica.parameters.items(), self._before)
        else:  # one that makes its state in its first step
            reset_state(replica.optimizer)
        replica.publish()
        self._amid, self._handing = False, None

    @torch.no_grad()
    def leave(self, replica: Replica) -> State:
        """What compression held back of differences is made up for at once."""
        if self._peers.size > 1:
            self._by_replica.average_optimizers(replica)
        for path, owed in self._by_replica.held_back(replica, self._reducer).items():
            replica.parameters[path].sub_(self._by_replica.sum(owed))
        replica.publish()
        self._outer, self._start, self._before = None, [], {}
        return {}

    def alike(self, replica: Replica) -> State:
        """The averages, and the outer step's momentum; each optimizer goes its own way."""
        return {name: value for name, value in replica.state().items() if name.startswith("model.")} | self._outer_state(replica)

    def state(self, replica: Replica) -> State:
        return self._outer_state(replica) | self._by_replica.optimizers(replica) | self._by_replica.residuals(replica, self._reducer)

    def state_to_load(self, replica: Replica, names: Collection[str]) -> State:
        state = self._outer_state(replica) if any(name.startswith("sync.outer.") for name in names) else {}
        return state | self._by_replica.optimizers_to_load(replica, names) | self._by_replica.residuals_to_load(replica, names)

    def restore(self, replica: Replica, state: State) -> None:
        """The outer momentum has been loaded in place."""
        self._by_replica.restore_optimizers(replica, state)
        self._by_replica.restore_residuals(replica, self._reducer, state)

    def resize(self, replica: Replica, bucket_bytes: int) -> None:
        resize_buckets(replica, self._reducer, bucket_bytes)

    def close(self) -> None:
        self._reducer.regroup(None)

    def _remember(self, replica: Replica) -> None:
        """The optimizer's state, should the round be void: in tensors that are allocated once."""
        state = optimizer_state(replica.optimizer, replica.parameters.items())
        for name, value in state.items():
            if isinstance(value, Tensor) and name in self._before:
                self._before[name].copy_(value)
            else:
                self._before[name] = value.clone() if isinstance(value, Tensor) else value

    @torch.no_grad()
    def _take_differences(self, work: Work, replica: Replica) -> None:
        """This replica's share of delta, in place of its gradients."""
        own = sum(self._targets(part.step, part.ranges) for part in work.parts)
        share = own / sum(self._targets(part.step, None) for part in work.parts)
        for parameter, start in zip(replica.parameters.values(), self._start, strict=True):
            assert parameter.grad is not None
            torch.sub(start, parameter, out=parameter.grad).mul_(share)

    def _reduce(self, work: Work, replica: Replica) -> Traffic:
        began = devices.mark(replica.device)
        self._reducer.begin(work.step)
        for bucket, key in zip(replica.gradients.buckets, replica.gradients.keys, strict=True):
            self._reducer.launch(bucket, key)
        self._reducer.wait()
        waited = devices.between(began, devices.mark(replica.device))
        return Traffic(self._reducer.sent, self._reducer.seconds, waited)

    @torch.no_grad()
    def _step_outside(self, replica: Replica) -> None:
        assert self._outer is not None
        torch._foreach_copy_(list(replica.parameters.values()), self._start)
        self._outer.step()
        replica.publish()

    def _outer_state(self, replica: Replica) -> State:
        if self._outer is None or not self._momentum:
            return {}
        return {
            f"sync.outer.{path}": placed(self._outer.state[parameter]["momentum_buffer"], replica.parts[path])
            for path, parameter in replica.parameters.items()
        }
