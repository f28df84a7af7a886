"""The loss is a sum over targets, and its gradient is softmax minus one-hot."""

import pytest
import torch
from torch.nn import functional

from plait.errors import RunFileError
from plait.model import loss as losses
from plait.model.loss import cross_entropy, load_loss


def reference(logits, targets):
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)


@pytest.fixture
def batch(monkeypatch):
    monkeypatch.setattr(losses, "_rows", lambda logits: 5)  # several chunks and a short last one
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 11, (3, 7), generator=generator)
    targets[0, 2:] = -100
    targets[2] = -100
    return torch.randn(3, 7, 11, dtype=torch.float64, generator=generator), targets


def test_value_and_gradient_are_torchs(batch):
    logits, targets = batch
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (cross_entropy(ours, targets) / 3).backward()
    (reference(theirs, targets) / 3).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)
    assert cross_entropy(logits, targets).item() == pytest.approx(reference(logits, targets).item(), rel=1e-13)


def test_parts_sum_to_the_whole(batch):
    logits, targets = batch
    parts = sum(cross_entropy(logits[row : row + 1], targets[row : row + 1]) for row in range(3))
    torch.testing.assert_close(parts, cross_entropy(logits, targets), rtol=1e-13, atol=0)


def test_bf16_logits_are_summed_in_fp32(batch):
    logits, targets = batch
    rough = logits.bfloat16().requires_grad_()
    loss = cross_entropy(rough, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert rough.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(reference(rough.detach().double(), targets).item(), rel=1e-6)


def test_padding_alone_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_a_logit_that_is_not_finite_is_seen_in_the_loss():
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 0] = float("nan")
    assert not torch.isfinite(cross_entropy(logits, torch.zeros(1, 2, dtype=torch.int64)))


def test_a_second_backward_is_refused():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(1, 2, dtype=torch.int64))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_a_users_loss_is_found_and_its_signature_checked():
    assert load_loss("cross_entropy") is cross_entropy
    assert load_loss("torch.nn.functional:mse_loss") is functional.mse_loss
    with pytest.raises(RunFileError, match=r"train\.loss.*signature"):
        load_loss("plait.model.init:draw")
    with pytest.raises(RunFileError, match=r"train\.loss.*no function"):
        load_loss("plait.model.loss:NO_TARGET")


def test_smoothed_targets_are_those_of_torch():
    logits = torch.randn(3, 5, 40, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 40, (3, 5))
    targets[0, :2] = losses.NO_TARGET
    loss = cross_entropy(logits, targets, 0.15)
    loss.backward()
    ours, logits.grad = logits.grad, None
    wanted = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=losses.NO_TARGET, reduction="sum", label_smoothing=0.15
    )
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, logits.grad, rtol=1e-10, atol=1e-12)
