"""What `plait verify` shows: a line as each comparison ends, and what it all means."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

from plait.proof.coverage import Proof, Recovery, said
from plait.proof.faults import Report as FaultReport
from plait.proof.faults import Survived
from plait.proof.layouts import Compared, Report, Tolerance, named
from plait.proof.soak import Soaked

_WIDTH = 36


def heading(tolerance: Tolerance) -> str:
    """Two lines: what the columns are, and what may differ."""
    return "\n".join(
        [
            f"{'layout':<{_WIDTH}}{'loss':>10}{'grad_norm':>12}{'params':>10}",
            _allowed(tolerance),
        ]
    )


def _allowed(tolerance: Tolerance, indent: int = 0) -> str:
    return f"{'allowed':<{_WIDTH + indent}}{tolerance.loss:>10.0e}{tolerance.grad_norm:>12.0e}{tolerance.params:>10.0e}"


def line(compared: Compared) -> str:
    """One comparison; where it did not end, its last line of trouble."""
    numbers = f"{compared.loss:>10.1e}{compared.grad_norm:>12.1e}{compared.params:>10.1e}"
    verdict = "" if not compared.layout else "  pass" if compared.ok else "  FAIL"
    why = f"  {compared.why.strip().splitlines()[-1]}" if compared.why else ""
    return f"{named(compared.layout):<{_WIDTH}}{numbers}{verdict}{why}"


def conclusion(report: Report) -> str:
    lines = [f"left out: {layout}: {why}" for layout, why in report.left_out.items()]
    failed = sum(not compared.ok for compared in report.layouts)
    held = f"{len(report.layouts)} layouts draw the curve of one process"
    return "\n".join([*lines, f"{failed} of {len(report.layouts)} layouts do NOT draw the curve of one process" if failed else held])


def survived_heading(tolerance: Tolerance) -> str:
    """Two lines: what the columns are, and what may differ."""
    return "\n".join([f"{'failure':<{_WIDTH}}{'back in':>16}{heading(tolerance).splitlines()[0][_WIDTH:]}", _allowed(tolerance, 16)])


def survived_line(survived: Survived) -> str:
    compared = survived.compared
    back = "" if survived.seconds is None else f"{survived.seconds:.2f} s"
    numbers = f"{back:>8}{compared.loss:>10.1e}{compared.grad_norm:>12.1e}{compared.params:>10.1e}"
    why = f"  {survived.wrong[0]}" if survived.wrong else ""
    return f"{survived.what:<{_WIDTH + 8}}{numbers}{'  pass' if survived.ok else '  FAIL'}{why}"


def survived_conclusion(report: FaultReport) -> str:
    failed = sum(not each.ok for each in report.survived)
    if failed:
        return f"{failed} of {len(report.survived)} failures are NOT survived as promised"
    return f"{len(report.survived)} failures survived: the curve is that of one undisturbed process, each sample was used exactly once"


def soaked_lines(soaked: Soaked) -> str:
    """What was killed, what it took to go on, and how far the curve is from the undisturbed one."""
    proof, seconds, compared = soaked.proof, soaked.seconds, soaked.compared
    whom = ", ".join(f"{who} {count} times" for who, count in sorted(soaked.killed.items()))
    again = sum(each.void for each in proof.recoveries)
    cuts = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else seconds * 19
    back = f"median {cuts[9]:.2f} s, 95% {cuts[18]:.2f} s, longest {seconds[-1]:.2f} s" if seconds else "never"
    most = Tolerance()
    return "\n".join(
        [
            f"{sum(soaked.killed.values())} processes killed in {soaked.took:.0f} s: {whom}",
            f"{proof.steps} of {proof.planned} steps committed, {proof.generations} generations, {again} steps done again from checkpoints",
            f"from a failure to the next commit: {back}",
            f"{soaked.hung} hangs",
            f"against one undisturbed process: loss {compared.loss:.1e} (allowed {most.loss:.0e}), grad_norm {compared.grad_norm:.1e} "
            f"({most.grad_norm:.0e}), parameters {compared.params:.1e} ({most.params:.0e})",
            *([compared.why] if compared.why else []),
            *(proof.wrong or ["each sample of each committed step was used exactly once"]),
        ]
    )


def tell_of_kills(kills: int) -> Callable[[int], None]:
    """A line now and then, as processes are killed."""
    shown = 0

    def told(killed: int) -> None:
        nonlocal shown
        if killed * 10 // kills > shown:
            shown = killed * 10 // kills
            print(f"{killed} of {kills} killed", file=sys.stderr, flush=True)

    return told


def coverage(proof: Proof) -> str:
    """What a journal proves, and what the run went through."""
    state = "finished" if proof.finished else "not finished"
    whole = f" of {proof.planned}" if proof.planned else ""
    lines = [
        f"{proof.steps}{whole} steps committed, {state}: {proof.samples:,} samples of the run",
        f"{proof.generations} {_many('generation', proof.generations)}, resumed {proof.resumed} {_many('time', proof.resumed)}, "
        f"{len(proof.recoveries)} {_many('failure', len(proof.recoveries))}, {len(proof.skipped)} steps skipped as not finite",
        *(f"  {_recovery(recovery)}" for recovery in proof.recoveries),
    ]
    if proof.left_out:
        count = sum(end - first for first, end in proof.left_out)
        lines.append(f"{count} samples of the run's order left out: {said(proof.left_out)}")
    lines += [f"steps {first} to {last} may be touched by a replica that was corrupted" for first, last in proof.touched]
    if proof.ok:
        return "\n".join([*lines, "each sample of each committed step was used exactly once"])
    return "\n".join([*lines, f"{len(proof.wrong)} faults:", *(f"  {fault}" for fault in proof.wrong)])


def _recovery(recovery: Recovery) -> str:
    who = " and ".join(f"replica {replica} rank {rank}" if replica >= 0 else f"server {rank}" for replica, rank in recovery.lost)
    lost = f"lost {who}: {recovery.why}" if who else f"rolled back: {recovery.why}"
    again = f", {recovery.void} steps done again" if recovery.void else ""
    if recovery.step is None:
        return f"{lost}; no step was committed since{again}"
    return f"{lost}; step {recovery.step} was committed {recovery.seconds:.2f} s later{again}"


def _many(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
