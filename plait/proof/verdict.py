"""What a comparison comes to, in two sentences: who was first, and who sent least; and what each did to the loss."""

from __future__ import annotations

from plait.proof.comparison import Comparison, Result

_NEAR = 0.05
"""Times closer than this are the machine's mood."""


def verdict(comparison: Comparison) -> list[str]:
    """Two sentences; one where nothing but the reference ended."""
    others = [result for result in comparison.results[1:] if result.why is None]
    if not others:
        return [f"Only {comparison.reference.variant.name} ended."]
    return [_of_time(comparison, others), _of_bytes(comparison, others)]


def _first(others: list[Result]) -> Result:
    return min(others, key=lambda result: result.ratios["seconds"].mean)


def _of_time(comparison: Comparison, others: list[Result]) -> str:
    reference, first = comparison.reference, _first(others)
    ratio = first.ratios["seconds"].mean
    whole = f"{reference.numbers['seconds'].mean:,.3g} s"
    name, theirs = first.variant.name, reference.variant.name
    if ratio > 1 + _NEAR:
        return f"{theirs} was first through the budget, in {whole}; next was {name}, {ratio:.2f} times as long, {_loss(first)}."
    if ratio > 1 - _NEAR:
        return f"None was faster than {theirs}, which took {whole}; {name} took as long, {_loss(first)}."
    return f"{name} was first through the budget, in {ratio:.2f} times the {whole} of {theirs}, {_loss(first)}."


def _of_bytes(comparison: Comparison, others: list[Result]) -> str:
    reference = comparison.reference
    known = [result for result in others if "sent" in result.ratios]
    if not known:
        return "What was sent, these journals do not tell."
    least = min(known, key=lambda result: result.ratios["sent"].mean)
    ratio = least.ratios["sent"].mean
    if ratio >= 1:
        return f"None sent less than {reference.variant.name}."
    share = f"1/{1 / ratio:.0f}" if ratio < 0.1 else f"{ratio:.2f}"
    if least is _first(others):
        return f"{least.variant.name} also sent least, {share} of {reference.variant.name}'s bytes."
    return f"{least.variant.name} sent least, {share} of {reference.variant.name}'s bytes, {_loss(least)}."


def _loss(result: Result) -> str:
    """Against the reference; over several seeds, only what is beyond their spread is a difference."""
    spread = result.differences.get("loss")
    if spread is None:
        return "at a validation loss that is not finite"
    if f"{spread.mean:+.4f}" in ("+0.0000", "-0.0000"):
        return "at the same validation loss"
    if spread.deviation is not None and abs(spread.mean) <= spread.deviation:
        return f"at a validation loss that differs by no more than seeds do ({spread.mean:+.4f} ± {spread.deviation:.4f})".replace("-", "−")
    return f"at a validation loss {abs(spread.mean):.4f} {'higher' if spread.mean > 0 else 'lower'}"
