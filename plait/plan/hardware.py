"""What devices can do at most: dense matmul FLOP/s by device name and precision, from their vendors' data sheets.

bf16: tensor cores with fp32 accumulation, without sparsity. fp32: without TF32, as torch computes by default. fp64: as torch's
matmuls compute it, with tensor cores where there are any for it. Sources: NVIDIA's data sheets of H200, H100, A100, A30, A10, L40S,
L4, V100, T4 and B200 (HGX), its Ada and Ampere GA102 whitepapers, AMD's data sheets of the Instinct series.
"""

from __future__ import annotations

import re


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of one device, or None where it is not known: CPUs, devices not listed, precisions they lack.

    device_name: what the driver calls it, "NVIDIA H100 80GB HBM3". The longest entry whose words it has counts.
    """
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    fitting = [parts for parts in _PEAKS if words.issuperset(parts.split())]
    if not fitting:
        return None
    teraflops = _PEAKS[max(fitting, key=len)].get(precision)
    return None if teraflops is None else teraflops * 1e12


_PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250, "fp32": 75, "fp64": 37},
    "GB200": {"bf16": 2500, "fp32": 80, "fp64": 40},
    "H200": {"bf16": 989, "fp32": 67, "fp64": 67},
    "GH200": {"bf16": 989, "fp32": 67, "fp64": 67},
    "H100": {"bf16": 989, "fp32": 67, "fp64": 67},
    "H100 PCIE": {"bf16": 756, "fp32": 51, "fp64": 51},
    "H100 NVL": {"bf16": 835, "fp32": 60, "fp64": 60},
    "A100": {"bf16": 312, "fp32": 19.5, "fp64": 19.5},
    "A30": {"bf16": 165, "fp32": 10.3, "fp64": 10.3},
    "A10": {"bf16": 125, "fp32": 31.2},
    "A10G": {"bf16": 70, "fp32": 35},
    "L40S": {"bf16": 362, "fp32": 91.6},
    "L4": {"bf16": 121, "fp32": 30.3},
    "V100": {"fp32": 15.7, "fp64": 7.8},
    "T4": {"fp32": 8.1},
    "RTX 4090": {"bf16": 165.2, "fp32": 82.6},
    "RTX 3090": {"bf16": 71, "fp32": 35.6},
    "MI300X": {"bf16": 1307, "fp32": 163.4, "fp64": 163.4},
    "MI325X": {"bf16": 1307, "fp32": 163.4, "fp64": 163.4},
    "MI250X": {"bf16": 383, "fp32": 95.7, "fp64": 95.7},
}
