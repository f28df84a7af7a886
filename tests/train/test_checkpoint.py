"""Checkpoints: what was saved comes back bit by bit; what is damaged, foreign or half written never does."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from plait.errors import CheckpointError
from plait.train import manifest, pieces
from plait.train.checkpoint import Checkpoints, load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # plait ignores it; pytest does not know


class Told:
    """Collects what a Checkpoints says."""

    def __init__(self):
        self.saved, self.failed = [], []

    def on_saved(self, step, path, size, seconds, stalled):
        self.saved.append((step, path, size))
        assert seconds >= 0
        assert stalled >= 0

    def on_failed(self, step, why):
        self.failed.append((step, why))


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def make(folder, told, keep=2):
    return Checkpoints(folder, keep, told.on_saved, told.on_failed)


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=generator)
    return {
        "model.weight": torch.nn.Parameter(weight),
        "model.bf16": weight.bfloat16(),
        "model.fp64": weight.double() / 3,
        "model.nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-40]),
        "model.empty": torch.zeros(0, 4),
        "model.strided": weight.t(),
        "model.flags": weight > 0,
        "optimizer.weight.step": torch.tensor(3.0 + seed),
        "optimizer.weight.count": torch.arange(4) + 2**60,
        "loop.tokens": 12345678901 + seed,
        "loop.loss": 0.1 + seed,
    }


def bits(values):
    return {
        name: value.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def save(folder, told, step=200, values=None, about=None, keep=2):
    checkpoints = make(folder, told, keep)
    checkpoints.save(step, values or state(), about or {})
    checkpoints.wait()
    assert told.failed == []
    return folder / manifest.name(step)


def damage(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_kind_of_value_comes_back_bit_by_bit(folder, told):
    path = save(folder, told, about={"seed": 7, "shares": [[0, 4]]})
    loaded = state(seed=1)
    assert bits(loaded) != bits(state())
    kept = loaded["model.weight"]
    assert load(path, loaded) == {"seed": 7, "shares": [[0, 4]]}
    assert bits(loaded) == bits(state())
    assert loaded["model.weight"] is kept


def test_what_is_saved_is_the_state_at_the_call(folder, told):
    values, about = state(), {"list": [1]}
    checkpoints = make(folder, told)
    checkpoints.save(200, values, about)
    with torch.no_grad():
        values["model.weight"].zero_()
    about["list"].append(2)
    checkpoints.wait()
    loaded = state(seed=1)
    assert load(folder / "step-00000200", loaded) == {"list": [1]}
    assert bits(loaded) == bits(state())


def test_staging_buffers_are_allocated_once(folder, told, monkeypatch):
    checkpoints = make(folder, told)
    checkpoints.save(1, state(), {})
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: pytest.fail("allocated again"))
    checkpoints.save(2, state(seed=1), {})
    checkpoints.wait()
    loaded = state()
    load(folder / "step-00000002", loaded)
    assert bits(loaded) == bits(state(seed=1))


def test_it_says_what_was_written_and_keeps_the_last_k(folder, told):
    checkpoints = make(folder, told, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    assert [step for step, _, _ in told.saved] == [1, 2, 3]
    assert manifest.candidates(folder) == [folder / "step-00000003", folder / "step-00000002"]
    assert sorted(os.listdir(folder)) == ["step-00000002", "step-00000003"]
    files = [file.stat().st_size for file in (folder / "step-00000003").glob("*.safetensors")]
    assert told.saved[-1][2] == sum(files)


def test_any_reader_of_safetensors_reads_the_pieces(folder, told):
    path = save(folder, told)
    found = load_file(path / "piece-0000-000.safetensors")
    assert torch.equal(found["model.bf16"], state()["model.bf16"])


def test_pieces_are_of_limited_size_and_together_whole(folder, told, monkeypatch):
    monkeypatch.setattr(pieces.PieceWriter.__init__, "__defaults__", (300,))
    path = save(folder, told)
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in path.glob("*.safetensors")]
    assert len(sizes) >= 3
    assert max(sizes) <= 300
    loaded = state(seed=1)
    load(path, loaded)
    assert bits(loaded) == bits(state())


def test_a_part_can_be_loaded_alone(folder, told):
    path = save(folder, told)
    part = {name: value for name, value in state(seed=1).items() if name.startswith("model.")}
    load(path, part, only="model.")
    assert torch.equal(part["model.weight"], state()["model.weight"])


def test_saving_a_step_again_replaces_it(folder, told):
    save(folder, told)
    path = save(folder, told, values=state(seed=5))
    loaded = state()
    load(path, loaded)
    assert bits(loaded) == bits(state(seed=5))
    assert os.listdir(folder) == ["step-00000200"]


def test_a_save_after_going_back_removes_the_void_future(folder, told):
    save(folder, told, step=300)
    save(folder, told, step=200)
    assert manifest.candidates(folder) == [folder / "step-00000200"]


def test_a_corrupt_piece_is_named_and_nothing_is_copied(folder, told):
    path = save(folder, told)
    damage(path / "piece-0000-000.safetensors")
    assert manifest.latest(folder) == path
    loaded = state(seed=1)
    with pytest.raises(CheckpointError, match=r"piece-0000-000\.safetensors.*corrupt"):
        load(path, loaded)
    assert bits(loaded) == bits(state(seed=1))
    with pytest.raises(CheckpointError, match="corrupt"):
        manifest.verify(path)


def test_missing_and_extra_tensors_are_listed(folder, told):
    path = save(folder, told)
    other = state()
    other["model.more"] = other.pop("model.bf16")
    with pytest.raises(CheckpointError, match="another model") as found:
        load(path, other)
    assert "missing there: model.more" in str(found.value)
    assert "there, but not here: model.bf16" in str(found.value)


def test_both_shapes_and_dtypes_of_a_mismatch_are_named(folder, told):
    path = save(folder, told)
    with pytest.raises(CheckpointError, match=r"model\.weight: \[7, 5\] float32 there, \[9, 5\] float32 here"):
        load(path, state() | {"model.weight": torch.zeros(9, 5)})
    with pytest.raises(CheckpointError, match=r"model\.bf16: \[7, 5\] bfloat16 there, \[7, 5\] float32 here"):
        load(path, state() | {"model.bf16": torch.zeros(7, 5)})
    with pytest.raises(CheckpointError, match=r"loop\.loss: a tensor in one"):
        load(path, state() | {"loop.loss": torch.zeros(())})


def test_a_full_disk_is_told_cleaned_up_and_survived(folder, told, monkeypatch):
    first = save(folder, told, step=1)
    checkpoints = make(folder, told)

    def full(stream, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_write_all", full)
        checkpoints.save(2, state(), {})
        checkpoints.wait()
    assert [step for step, _ in told.failed] == [2]
    assert "No space left on device" in told.failed[0][1]
    assert os.listdir(folder) == [first.name]
    told.failed.clear()
    checkpoints.save(3, state(), {})
    checkpoints.wait()
    assert told.failed == []
    assert manifest.latest(folder) == folder / "step-00000003"


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["model.weight", "optimizer.weight.mean", "sync.held_back"])
def test_a_state_that_is_not_finite_is_not_kept(folder, told, name, value):
    first = save(folder, told, step=1)
    broken = state() | {name: torch.nn.Parameter(torch.tensor([[0.0, value], [1.0, 2.0]]))}
    checkpoints = make(folder, told)
    checkpoints.save(2, broken, {})
    checkpoints.wait()
    assert f"{name} is not finite" in told.failed[-1][1]
    assert manifest.latest(folder) == first
    assert os.listdir(folder) == [first.name]


def test_a_manifest_that_cannot_be_written_leaves_no_checkpoint(folder, told, monkeypatch):
    def fail(partial, whole):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(manifest, "write", fail)
    checkpoints = make(folder, told)
    checkpoints.save(2, state(), {})
    checkpoints.wait()
    assert "Input/output error" in told.failed[0][1]
    assert os.listdir(folder) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path, told):
    (tmp_path / "checkpoints").write_text("a file")
    checkpoints = make(tmp_path / "checkpoints", told)
    checkpoints.save(2, state(), {})
    checkpoints.wait()
    assert "step-00000002" in told.failed[0][1]


def test_a_second_save_waits_for_the_first(folder, told, monkeypatch):
    order, go = [], threading.Event()
    write = pieces.write_piece

    def slow(file, tensors):
        go.wait(10)
        order.append("written")
        return write(file, tensors)

    monkeypatch.setattr(pieces, "write_piece", slow)
    checkpoints = make(folder, told)
    checkpoints.save(1, state(), {})
    order.append("returned")
    threading.Timer(0.05, go.set).start()
    checkpoints.save(2, state(), {})
    order.append("returned")
    checkpoints.wait()
    assert order[:2] == ["returned", "written"]
    assert [step for step, _, _ in told.saved] == [1, 2]


def test_what_json_cannot_hold_is_the_callers_mistake(folder, told):
    with pytest.raises(TypeError):
        make(folder, told).save(1, {"loop.thing": object()}, {})


def test_numbers_that_are_not_finite_come_back(folder, told):
    path = save(folder, told, values={"loop.best": float("inf")}, about={"loss": float("-inf")})
    loaded = {"loop.best": 0.0}
    assert load(path, loaded) == {"loss": float("-inf")}
    assert loaded["loop.best"] == float("inf")


def test_the_manifest_room_does_not_import_torch():
    script = "import sys, plait.train.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_nothing_is_pickled(folder, told):
    path = save(folder, told)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
    assert json.loads((path / manifest.FILE).read_text())["scalars"] == {"loop.tokens": 12345678901, "loop.loss": 0.1}
