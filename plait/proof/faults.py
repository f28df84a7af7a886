"""Promises 1 and 2 under failure, proved on your machine: replicas are killed at each point of a unit, and the curve stays.

    reference       one process, fp64, undisturbed
    each failure    the run's replicas and sync; kill -9, a hang, an error, at a point that is scripted

A failure is survived when the curve and the final parameters are those of the reference, to rounding, and the journal proves that each
sample was used exactly once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from plait import spec
from plait.cluster.faults import Fault, Point
from plait.cluster.nursery import Nursery
from plait.errors import RunFileError
from plait.proof.coverage import verify_run
from plait.proof.layouts import Compared, Prover, Tolerance, for_proof
from plait.tasks.pretrain import prepare

STEPS = 12
CHECK_EVERY = "2 steps"
HANG_AFTER = 4.0
"""Seconds: short, so that a proof is."""
_OF_UNIT: tuple[Point, ...] = ("computing", "reducing", "reduced", "voted", "applying", "applied")
_SERVED: tuple[Point, ...] = ("computing", "pushing", "reduced", "voted")


@dataclass(frozen=True)
class Scenario:
    """What happens: at once, or one after the other."""

    what: str
    faults: list[Fault]


@dataclass(frozen=True)
class Survived:
    """compared: with the reference. lost: (replica, rank) by the journal. seconds: the longest from a failure to the next commit. wrong:
    what the journal does not prove. corrupted: times that replicas were found not to be alike."""

    what: str
    compared: Compared
    lost: list[tuple[int, int]]
    seconds: float | None
    wrong: list[str]
    corrupted: int = 0

    @property
    def ok(self) -> bool:
        return self.compared.ok and bool(self.lost or self.corrupted) and not self.wrong


@dataclass(frozen=True)
class Report:
    tolerance: Tolerance
    survived: list[Survived]

    @property
    def ok(self) -> bool:
        return all(each.ok for each in self.survived)

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(each), "ok": each.ok} for each in self.survived]
        return {"tolerance": asdict(self.tolerance), "survived": rows, "ok": self.ok}


def verify_faults(
    run: spec.Run, steps: int = STEPS, told: Callable[[Survived], None] = lambda _: None, nursery: Nursery | None = None
) -> Report:
    """Train `steps` steps of a run undisturbed, and again with each failure. told: of each, as it ends.

    Raises RunFileError for a run whose curve follows who is there: it has no reference.
    """
    check_one_curve(run)
    proven = for_proof(run.model_copy(update={"sync": spec.Sync()}), steps)
    own = run.resolved()
    elastic: dict[str, Any] = {"hang_after": HANG_AFTER} | ({} if run.sync.serves else {"check_every": CHECK_EVERY})
    sections = {"sync": own["sync"], "balance": own["balance"], "elastic": elastic, "checkpoint": {"every": "3 steps"}}
    layout = own["layout"]
    with tempfile.TemporaryDirectory(prefix="plait-proof-") as folder, ExitStack() as stack:
        prover = Prover(proven, prepare(proven), Path(folder), nursery or stack.enter_context(Nursery(many=True)))
        survived = []
        for scenario in scenarios(run, steps):
            compared = prover.compare(layout, sections, [asdict(fault) for fault in scenario.faults])
            survived.append(_judged(scenario, compared, prover.last))
            told(survived[-1])
    return Report(prover.tolerance, survived)


def check_one_curve(run: spec.Run) -> None:
    """Raises RunFileError for a run whose curve follows who is there: it has no reference."""
    modes = [agreement.mode for agreement in run.sync.agreements]
    bound = [mode for mode in modes if mode not in ("allreduce", "synchronous")]
    compressed = [agreement.compress for agreement in run.sync.agreements if agreement.compress != "none"]
    if bound or compressed:
        what = f'"{bound[0]}"' if bound else f'sync.compress = "{compressed[0]}"'
        raise RunFileError(
            f"failures are compared with the curve of one process, and under {what} the curve follows who is there; "
            'use sync.strategy = "allreduce" or a synchronous "server", not compressed'
        )


def scenarios(run: spec.Run, steps: int) -> Iterator[Scenario]:
    """Deaths at each point, of the first replica and of its last rank; two and all at once; amid a save and a join; a hang, a bit that
    flips, an error."""
    last, others = run.layout.ranks - 1, run.layout.replicas > 1
    at = max(2, steps // 2)
    served = run.sync.serves
    for point in _SERVED if served else _OF_UNIT:
        yield Scenario(f"kill -9, {point}", [Fault(point, at, 0, last)])
    yield Scenario("kill -9 amid a save", [Fault("saving", 0, 0), *([Fault("saving", 0, 1)] if others else [])])
    everyone = [Fault("computing", at, replica) for replica in range(run.layout.replicas)]
    if others and not served:
        yield Scenario("kill -9, and of who comes amid its join", [Fault("computing", at, 0), Fault("joining", 0, 0, attempt=1)])
    if run.layout.replicas > 2:
        yield Scenario("kill -9 of two at once", everyone[:2])
    yield Scenario("kill -9 of all at once", everyone)
    yield Scenario("a hang", [Fault("computing", at, 0, action="hang")])
    if others and not served:
        yield Scenario("a bit of a parameter flips", [Fault("applied", at, 1, last, action="flip")])
    yield Scenario("an error", [Fault("computing", at, 0, action="raise")])


def _judged(scenario: Scenario, compared: Compared, folder: Path) -> Survived:
    if compared.why is not None:
        return Survived(scenario.what, compared, [], None, [compared.why.strip().splitlines()[-1]])
    proof = verify_run(folder)
    lost = [member for recovery in proof.recoveries for member in recovery.lost]
    seconds = [recovery.seconds for recovery in proof.recoveries if recovery.seconds is not None]
    wrong = proof.wrong if lost or proof.corrupted else ["nothing failed: the run was over before"]
    return Survived(scenario.what, compared, lost, max(seconds, default=None), wrong, proof.corrupted)


assert {*_OF_UNIT, *_SERVED} <= set(get_args(Point))
