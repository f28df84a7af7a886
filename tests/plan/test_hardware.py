"""Peaks by the names that drivers give."""

import pytest

from plait.plan.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "bf16", 835),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp64", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("AMD Instinct MI300X", "bf16", 1307),
        ("AMD Instinct MI250X", "bf16", 383),
        ("AMD EPYC 9R14", "fp32", None),
        ("cpu", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp8", None),
    ],
)
def test_peak(name, precision, teraflops):
    assert peak_flops(name, precision) == (None if teraflops is None else pytest.approx(teraflops * 1e12))
