"""safetensors files, streamed: what the library reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from plait.errors import CheckpointError
from plait.train.tensorfile import Kind, TensorFile, cast, header, transposed, write, write_hashed

VALUES = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
KINDS = {"a": Kind("F32", (2, 5, 3)), "b": Kind("F32", (7,)), "none": Kind("F32", (0, 4))}
PARTS = {"a": [VALUES[:1], VALUES[1:]], "b": [np.ones(7, np.float32)], "none": []}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    hashed = write_hashed(tmp_path / "hashed.safetensors", KINDS, PARTS.__getitem__)
    plain = write(tmp_path / "plain.safetensors", KINDS, PARTS.__getitem__, {"format": "pt"})
    assert hashed.bytes == (tmp_path / "hashed.safetensors").stat().st_size
    assert plain == (tmp_path / "plain.safetensors").stat().st_size
    for name in ("hashed", "plain"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert torch.equal(found["a"], torch.from_numpy(VALUES))
        assert found["none"].shape == (0, 4)


@given(st.data())
def test_any_box_of_a_tensor_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("boxes") / "file.safetensors"
    save_file({"a": torch.from_numpy(VALUES), "other": torch.zeros(3, dtype=torch.int8)}, path)
    low = [data.draw(st.integers(0, size)) for size in VALUES.shape]
    high = [data.draw(st.integers(first, size)) for first, size in zip(low, VALUES.shape, strict=True)]
    with TensorFile(path) as file:
        box = file.read("a", low, high)
    assert np.array_equal(box, VALUES[tuple(slice(first, end) for first, end in zip(low, high, strict=True))])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_values_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    codes = {torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-41, 3.4e38, -1.00390625, 1.01171875])
    values = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(0)), special])
    there = cast(values.numpy(), "F32", codes[dtype])
    wanted = values.to(dtype)
    assert np.array_equal(there, wanted.view(torch.uint16).numpy() if dtype == torch.bfloat16 else wanted.numpy())
    assert np.array_equal(cast(there, codes[dtype], "F32"), wanted.float().numpy())
    assert torch.from_numpy(cast(np.array([np.nan], np.float32), "F32", "BF16")).view(torch.bfloat16).isnan().all()


@pytest.mark.parametrize("damage", [b"", b"\x00" * 7, b"\xff" * 40, header({"a": Kind("F32", (4,))}), b"\x02\0\0\0\0\0\0\0[]"], ids=repr)
def test_what_is_no_such_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"bad.safetensors: is (no safetensors file|cut short)"):
        TensorFile(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("shape", [(5, 37), (64, 16), (1, 1), (3, 0)])
def test_a_matrix_is_turned_over(shape: tuple[int, int]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)[:, ::-1]
    turned = transposed(values)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, values.T)


def test_what_goes_wrong_while_a_block_is_made_is_told(tmp_path: Path) -> None:
    def blocks(name: str) -> Iterator[np.ndarray]:
        yield np.zeros(2, np.float32)
        raise CheckpointError(f"{name}: is cut short")

    with pytest.raises(CheckpointError, match="a: is cut short"):
        write_hashed(tmp_path / "file", {"a": Kind("F32", (4,))}, blocks)
