"""What devices can do at most, from their makers' data sheets: dense matrix operations, without sparsity."""

from __future__ import annotations

_PEAKS: list[tuple[str, dict[str, float]]] = [
    # a part of the name that torch tells; peak FLOP/s by precision. The first that fits counts.
    ("H200", {"bf16": 989e12, "fp32": 67e12, "fp64": 67e12}),
    ("H100 PCIe", {"bf16": 756e12, "fp32": 51e12, "fp64": 51e12}),
    ("H100", {"bf16": 989e12, "fp32": 67e12, "fp64": 67e12}),
    ("B200", {"bf16": 2250e12, "fp32": 80e12, "fp64": 40e12}),
    ("A100", {"bf16": 312e12, "fp32": 19.5e12, "fp64": 19.5e12}),
    ("L40S", {"bf16": 362e12, "fp32": 91.6e12}),
    ("L4", {"bf16": 121e12, "fp32": 30.3e12}),
    ("A10G", {"bf16": 70e12, "fp32": 35e12}),
    ("V100", {"fp32": 15.7e12, "fp64": 7.8e12}),
    ("RTX 4090", {"bf16": 165e12, "fp32": 82.6e12}),
]


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of one device, or None where no data sheet is known: CPUs, whose peak depends on clock and instructions."""
    return next((peaks.get(precision) for part, peaks in _PEAKS if part in device_name), None)
