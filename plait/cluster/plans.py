"""From a run file and prepared data to the ledger's plan, without torch."""

from __future__ import annotations

from functools import cache

from plait import __version__, spec
from plait.data.batches import Batches, EvaluationBatches
from plait.data.tokens import Prepared
from plait.ledger.plan import Plan
from plait.plan import counts, hardware


def plan_of(run: spec.Run, prepared: Prepared, batches: Batches) -> Plan:
    """Raises DataError where the validation split is missing or too short."""
    evaluate_every = run.train.evaluate_every
    save_every = run.checkpoint.every
    pieces = run.sync.strategy == "server"
    return Plan(
        replicas=run.layout.replicas,
        ranks=run.layout.ranks,
        layout={axis: size for axis in run.layout.INNER if (size := getattr(run.layout, axis)) > 1},
        steps=batches.steps,
        size=batches.size,
        targets=cache(batches.targets),
        capacity=tuple(run.balance.capacity or [1.0] * run.layout.replicas),
        save_every=batches.steps_of(save_every) if save_every else None,
        evaluate_every=batches.steps_of(evaluate_every) if evaluate_every else None,
        evaluation_size=_evaluation_size(run, prepared) if evaluate_every else 0,
        nonfinite_limit=run.train.nonfinite_limit,
        piece=_piece(run) if pieces else None,
        version=__version__,
        flops_per_token=_flops_per_token(run, prepared),
        peak_flops=lambda name: hardware.peak_flops(name, run.train.precision),
    )


def _evaluation_size(run: spec.Run, prepared: Prepared) -> int:
    return EvaluationBatches(prepared.split("validation", run.data.sequence), run.train.evaluate_sequences).size


def _piece(run: spec.Run) -> int:
    micro_batch = run.train.micro_batch
    return micro_batch if micro_batch != "auto" else -(-run.train.largest_batch // run.layout.replicas)


def _flops_per_token(run: spec.Run, prepared: Prepared) -> float:
    """0 for a user's own model, whose operations nobody has counted: its mfu is 0 of a known peak and null of none."""
    if ":" in run.model.family:
        return 0.0
    return counts.flops_per_token(run.model, prepared.vocabulary, run.data.sequence)
