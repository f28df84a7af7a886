"""The optimizers: what turns gradients into an update.

Each works parameter by parameter: nothing that it keeps crosses two parameters, so that its state can be cut wherever the
parameters are cut. State exists from the beginning, before the first step, so that a checkpoint loads in place.

Which parameter gets what:

    parameter                       weight decay     under "muon"
    matrix inside the blocks        yes              Muon
    embedding, head                 yes              AdamW
    learned positions               no               AdamW
    norms, biases (ndim < 2)        no               AdamW
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from plait import spec
from plait.errors import RunFileError
from plait.model.own import check_call, load_object
from plait.replica.eightbit import Adam8bit
from plait.replica.muon import Joint, Muon

Named = Iterable[tuple[str, Parameter]]
_FUSED = ("cpu", "cuda")  # torch has fused kernels elsewhere too; these two are tested here


def build_optimizer(
    settings: spec.Optimizer,
    named_parameters: Named,
    device: torch.device | str,
    joint: Joint | None = None,
    factor: Callable[[str], float] = lambda path: 1.0,
) -> torch.optim.Optimizer:
    """The optimizer of a run file over (path, parameter) pairs. joint: where ranks hold parts of the parameters. factor: of the learning
    rate, by path.

    Raises RunFileError where your own cannot be built.
    """
    named = list(named_parameters)
    fused = _fusible(named, torch.device(device))
    if settings.name == "muon":
        return _muon(settings, named, fused, joint, factor)
    groups = _by_rate(_by_decay(named, settings.weight_decay), factor)
    if ":" in settings.name:
        return _own(settings, groups)
    optimizer: torch.optim.Optimizer
    if settings.state == "int8":
        return _eight_bits(settings, groups, fused)
    if settings.name == "sgd":
        momentum = 0.9 if settings.momentum is None else settings.momentum
        optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, nesterov=bool(settings.nesterov), fused=fused)
    else:
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        optimizer = kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
    _create_known_state(optimizer)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr`, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate_factor", 1.0)


def clip_factor(most: float | None, grad_norm: float) -> float:
    """What gradients are multiplied by, so that their norm is `most` at most."""
    return most / (grad_norm + 1e-6) if most is not None and grad_norm > most else 1.0


def decays(path: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, but for learned positions."""
    return parameter.ndim >= 2 and not any("position" in part or part == "wpe" for part in path.lower().split("."))


def optimizer_state(optimizer: torch.optim.Optimizer, named_parameters: Named) -> dict[str, Any]:
    """The state as one flat dict, "<path>.<name>" to its tensor itself, not a copy (or to a plain number, where one is kept)."""
    return {f"{path}.{name}": value for path, parameter in named_parameters for name, value in _state_of(optimizer, parameter).items()}


def restore_state(optimizer: torch.optim.Optimizer, named_parameters: Named, state: Mapping[str, Any]) -> None:
    """Put the values of `optimizer_state`'s dict back, in place. What was loaded into its very tensors is there already."""
    for path, parameter in named_parameters:
        for name, value in _state_of(optimizer, parameter).items():
            given = state[f"{path}.{name}"]
            if not isinstance(value, Tensor):
                optimizer.state[parameter][name] = given
            elif value is not given:
                value.copy_(given)


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Back to the state before the first step: zeros where it exists from the beginning, none where a step makes it."""
    if type(optimizer) in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, Muon, Adam8bit):
        for values in optimizer.state.values():
            for value in values.values():
                value.zero_()
    else:
        optimizer.state.clear()


def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state tensors exist, whatever their values, for a checkpoint to be loaded into; parameters stay as they are.

    The optimizers of this file have theirs from the beginning. Your own usually makes them in its first step: it takes one here, on
    gradients of zero, and the parameters are put back. It then counts one step, so this is for loading alone, not for a fresh run.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(optimizer.state.get(parameter) for parameter in parameters):
        return
    kept = [(parameter, parameter.detach().clone(), parameter.grad) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with torch.no_grad():
        for parameter, value, gradient in kept:
            parameter.copy_(value)
            parameter.grad = gradient


def _fusible(named: list[tuple[str, Parameter]], device: torch.device) -> bool:
    return device.type in _FUSED and all(parameter.is_floating_point() for _, parameter in named)


def _by_decay(named: list[tuple[str, Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, the decayed and the spared, with the paths of their parameters as `param_names`; empty ones are left out."""
    groups = [
        {"params": [(path, parameter) for path, parameter in named if decays(path, parameter) == decayed], "weight_decay": amount}
        for decayed, amount in ((True, weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _by_rate(groups: list[dict[str, Any]], factor: Callable[[str], float]) -> list[dict[str, Any]]:
    """Each group again cut by the factor of its parameters' learning rate, which it is told as `rate_factor` where there are several."""
    cut = []
    for group in groups:
        factors = {path: factor(path) for path, _ in group["params"]}
        for each in dict.fromkeys(factors.values()):
            params = [(path, parameter) for path, parameter in group["params"] if factors[path] == each]
            cut.append({**group, "params": params} | ({} if each == 1.0 else {"rate_factor": each}))
    return cut


def _muon(
    settings: spec.Optimizer,
    named: list[tuple[str, Parameter]],
    fused: bool,
    joint: Joint | None,
    factor: Callable[[str], float],
) -> Muon:
    inside = [(path, parameter) for path, parameter in named if _orthogonal(path, parameter)]
    outside = [(path, parameter) for path, parameter in named if not _orthogonal(path, parameter)]
    if not inside:
        raise RunFileError('train.optimizer.name: "muon" needs matrices inside the model\'s `blocks`, and there are none; use "adamw"')
    matrices = {"params": inside, "weight_decay": settings.weight_decay, "orthogonal": True}
    return Muon(
        _by_rate([matrices, *_by_decay(outside, settings.weight_decay)], factor),
        lr=settings.lr,
        momentum=0.95 if settings.momentum is None else settings.momentum,
        nesterov=settings.nesterov is not False,
        betas=settings.betas,
        eps=settings.eps,
        fused=fused,
        joint=joint,
    )


def _eight_bits(settings: spec.Optimizer, groups: list[dict[str, Any]], fused: bool) -> Adam8bit:
    return Adam8bit(
        groups,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        block=settings.block_size,
        decoupled=settings.name == "adamw",
        fused=fused,
    )


def _orthogonal(path: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "blocks" in path.split(".") and decays(path, parameter)


def _own(settings: spec.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    build = load_object(settings.name, "train.optimizer.name")
    check_call(build, settings.name, "train.optimizer.name", groups, lr=settings.lr, **settings.settings)
    try:
        optimizer = build(groups, lr=settings.lr, **settings.settings)
    except (TypeError, ValueError) as error:
        raise RunFileError(f"train.optimizer: {settings.name} refused its settings: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RunFileError(f"train.optimizer.name: {settings.name} made a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def _create_known_state(optimizer: torch.optim.Optimizer) -> None:
    """What torch's Adam, AdamW and SGD would create in their first step, with the values that it would begin from."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.Adam):
                where = parameter.device if group["fused"] else "cpu"
                optimizer.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=where)
                optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                optimizer.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
            elif group["momentum"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _state_of(optimizer: torch.optim.Optimizer, parameter: Parameter) -> dict[str, Any]:
    """The names that the parameter's state holds a value for: torch keeps None where a feature is off."""
    return {name: value for name, value in optimizer.state.get(parameter, {}).items() if value is not None}
