"""From a run file and prepared data to the ledger's plan, without torch."""

from __future__ import annotations

from functools import cache

from plait import __version__, spec
from plait.data import corruption, dealing, objective, scoring
from plait.data.batches import Batches, EvaluationBatches
from plait.data.dealing import Cost
from plait.data.tokens import Prepared
from plait.events import Ranges
from plait.ledger.plan import Agreement, Plan, SpikeRules
from plait.plan import counts, hardware

CHECK_EVERY = "100 steps"


def plan_of(run: spec.Run, prepared: Prepared, batches: Batches, elastic: bool = False) -> Plan:
    """elastic: whether there is someone who starts replicas again. Raises DataError where the validation split is missing or too short."""
    evaluate_every, train = run.train.evaluate_every, run.train
    targets = cache(batches.targets)

    def leave_out(skipped: Ranges) -> None:
        batches.leave_out(skipped)
        targets.cache_clear()

    save_every = run.checkpoint.every
    return Plan(
        replicas=run.most_replicas if elastic else run.layout.replicas,
        beginning=run.layout.replicas,
        fewest=run.fewest_replicas if elastic else run.layout.replicas,
        elastic=elastic,
        ranks=run.layout.ranks,
        layout={axis: size for axis in run.layout.INNER if (size := getattr(run.layout, axis)) > 1},
        steps=batches.steps,
        size=batches.size,
        targets=targets,
        samples=batches.samples,
        skipped=batches.skipped,
        leave_out=leave_out,
        spikes=SpikeRules(train.spike, train.spike_norm, train.spike_skips, train.spike_limit),
        capacity=_capacity(run),
        balance="measured" if run.balance.capacity == "measured" else run.balance.policy,
        micro_batch=1 if run.train.micro_batch == "auto" else run.train.micro_batch,
        grain=run.train.micro_batch if run.train.compile and run.train.micro_batch != "auto" else 1,
        save_every=batches.steps_of(save_every) if save_every else None,
        evaluate_every=batches.steps_of(evaluate_every) if evaluate_every else None,
        evaluation_size=_evaluation_size(run, prepared) if evaluate_every else 0,
        check_every=_check_every(run, batches),
        nonfinite_limit=run.train.nonfinite_limit,
        score=scoring.score,
        agreements=tuple(_agreement(run, each, batches) for each in run.sync.agreements),
        servers=run.sync.processes,
        bucket_bytes=run.sync.bucket_bytes if run.sync.bucket_mib == "auto" else 0,
        version=__version__,
        flops_per_token=_flops_per_token(run, prepared, batches),
        peak_flops=lambda name: hardware.peak_flops(name, run.train.precision),
    )


def cost_of(run: spec.Run, vocabulary: int) -> Cost | None:
    """Of rows whose padding is left out; None where all cost the same, or micro-batches are compiled for."""
    grain, head = dealing.grain(run), run.data.objective.head
    if grain is None or run.train.compile:
        return None
    return Cost(run.data.sequence, grain, counts.knee(run.model, run.model.rows(vocabulary) if head is None else head.outputs))


def _check_every(run: spec.Run, batches: Batches) -> int | None:
    """None for never: where there is but one replica too."""
    every = batches.steps_of(run.elastic.check_every or spec.Duration(CHECK_EVERY))
    return every if every and max(run.most_replicas, run.layout.replicas) > 1 else None


def _capacity(run: spec.Run) -> tuple[float, ...]:
    """Who comes later can do as much as those that were there can on average."""
    stated = run.balance.stated or [1.0] * run.layout.replicas
    mean = sum(stated) / len(stated)
    return (*stated, *[mean] * (max(run.most_replicas, run.layout.replicas) - len(stated)))


def _evaluation_size(run: spec.Run, prepared: Prepared) -> int:
    return EvaluationBatches(prepared.split("validation", run.data.sequence), run.train.evaluate_sequences).size


def _agreement(run: spec.Run, settings: spec.Agreement, batches: Batches) -> Agreement:
    until = settings.until if isinstance(settings, spec.Phase) else None
    what, amount = (until.condition if until else None) or (None, None)
    micro_batch = run.train.micro_batch
    return Agreement(
        mode=settings.mode,
        unit=settings.unit,
        every=batches.steps_of(settings.every) if settings.every else 1,
        served=settings.strategy == "server",
        piece=(settings.push_every or 1) * micro_batch if micro_batch != "auto" else 1,
        staleness=settings.staleness,
        damped=settings.damping == "inverse",
        until=batches.steps_of(until.duration) if until and until.duration else None,
        until_loss=amount if what == "loss" else None,
        until_waiting=amount if what == "waiting" else None,
    )


def _flops_per_token(run: spec.Run, prepared: Prepared, batches: Batches) -> float:
    """For each token that is told, of which an encoder has few. 0 for a user's own model, whose operations nobody has counted: its mfu
    is 0 of a known peak and null of none."""
    if ":" in run.model.family:
        return 0.0
    model, vocabulary, sequence, told = run.model, run.model.rows(prepared.vocabulary), run.data.sequence, run.data.objective
    if told.kind == "span":
        rate, mean_span = told.rate or objective.RATE, told.mean_span or objective.MEAN_SPAN
        source, target = corruption.span_widths(sequence, rate, mean_span)
        return counts.flops_per_target(model, vocabulary, source + 1, target + 1, target + 1)
    if told.kind == "translate" and run.data.chat is None:
        rows = batches.filling
        each = sum(filling.told for filling in rows) / sum(filling.rows for filling in rows)
        return counts.flops_per_target(model, vocabulary, *rows[0].sides, each)
    if told.head is not None:
        return counts.flops_per_token(model, told.head.outputs, sequence) * sequence / _told_of_a_row(run, prepared)
    of_all = counts.flops_per_token(model, vocabulary, sequence)
    few = 1.0 if told.kind in ("causal", "translate") else int(corruption.masked_count(sequence, told.rate or objective.RATE)) / sequence
    return of_all / few


def _told_of_a_row(run: spec.Run, prepared: Prepared) -> float:
    """Targets of a sample with labels, on average."""
    if run.data.objective.kind != "tag":
        return 2.0 if run.data.objective.kind == "answer" else 1.0
    return sum(label.counts.get("train", 0) for label in prepared.manifest.labels) / prepared.documents("train")
