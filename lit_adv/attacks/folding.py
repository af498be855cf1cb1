"""A snapshot of a network that gives the same answers faster: batch norms folded, channels last."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_NORM_OF: dict[type, type] = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
_WRITES = {"STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "STORE_SUBSCR", "DELETE_ATTR"}
# what a forward method that keeps a record of its calls would call
_RECORDS = {"append", "extend", "insert", "update", "setdefault", "register_hook", "print"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def folded(model: nn.Module, image: Tensor) -> tuple[nn.Module, Tensor, int] | None:
    """A snapshot of ``model`` for many passes: each batch norm folded into the convolution before it, channels last.

    Images stay channels first: the weights alone bring what a convolution makes into the other order, and normalising
    three channels is slow where these lie last.

    The snapshot runs the model's own Python code on copies of its modules, which share all weights but those of the
    convolutions; it must be made anew when a weight changes. Pairs of convolution and batch norm are found by watching
    one image on its way, and the result is compared with the model's own: logits and an input gradient.

    Args:
        model: In eval mode.
        image: ``(1, C, H, W)``, a batch of one that the model takes.

    Returns:
        The snapshot, whether it agrees with the model on ``image`` (a bool tensor, so that the caller chooses when to
        wait for the device) and the number of classes. None where no snapshot is safe: the model is compiled or
        scripted, has hooks, or writes to its own attributes on the way; or it does not take the image.
    """
    if not isinstance(model, nn.Module) or not all(_is_plain(module) for module in model.modules()):
        return None
    devices = [image.device] if image.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            state = torch.get_rng_state()
            logits, gradient, pairs = _watched(model, image)
            snapshot = _snapshot(model, pairs)
            torch.set_rng_state(state)  # a model that draws random numbers draws the same ones again
            logits_too, gradient_too = _answer(snapshot, image)
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
        return None  # the model itself will say what is wrong with it or with the image
    return snapshot, _close(logits, logits_too) & _alike(gradient, gradient_too), logits.shape[1]


def _watched(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, dict[nn.Module, nn.Module]]:
    """Logits, an input gradient and the batch norm that takes each convolution's very output."""
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}
    calls: dict[nn.Module, int] = {}
    pairs: dict[nn.Module, nn.Module] = {}

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if type(module) in _NORM_OF:
            outputs[id(output)] = module, output  # the tensor is kept, so that its id stays its own
        elif inputs and id(inputs[0]) in outputs:
            before = outputs[id(inputs[0])][0]
            if _NORM_OF[type(before)] is type(module) and module.running_var is not None:
                pairs[before] = module

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if type(module) in _NORM_OF or type(module) in _NORM_OF.values():
                stack.callback(module.register_forward_hook(seen).remove)
        logits, gradient = _answer(model, image)
    # a convolution or norm used twice must not be folded for one of its uses
    return logits, gradient, {conv: norm for conv, norm in pairs.items() if calls[conv] == calls[norm] == 1}


def _answer(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = image.detach().clone().requires_grad_()
        logits = network(x)
        # every class weighs differently, or the gradients of a softmax would cancel
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device, dtype=logits.dtype)
        total = (logits * weights).sum()
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True) if total.requires_grad else (None,)
    return logits.detach(), torch.zeros_like(x) if gradient is None else gradient


def _close(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).abs() <= 1e-3 * a.abs() + 1e-3 * a.abs().amax()).all()  # False where there is a NaN


def _alike(a: Tensor, b: Tensor) -> Tensor:
    # one ReLU whose input rounds to the other side of 0 moves a gradient by some per cent
    return (a - b).norm() <= 0.1 * a.norm()


def _snapshot(model: nn.Module, pairs: dict[nn.Module, nn.Module]) -> nn.Module:
    fused: dict[nn.Module, nn.Module] = {}
    for convolution, norm in pairs.items():
        fused[convolution] = _channels_last(fuse_conv_bn_eval(convolution, norm))  # type: ignore[type-var,arg-type]
        fused[norm] = nn.Identity().eval()
    return _copy(model, fused)


def _copy(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy with modules of its own and the same parameters; ``made`` holds what is copied or replaced already."""
    if module not in made:
        copy = made[module] = object.__new__(type(module))
        copy.__dict__.update(module.__dict__)
        copy.__dict__["_modules"] = {
            name: None if child is None else _copy(child, made) for name, child in module._modules.items()
        }
        if type(module) is nn.Conv2d:
            _channels_last(copy)
    return made[module]


def _channels_last(module: nn.Module) -> nn.Module:
    module.__dict__["_parameters"] = {
        name: None
        if held is None
        else nn.Parameter(
            held.detach().contiguous(memory_format=torch.channels_last) if held.ndim == 4 else held.detach(),
            requires_grad=False,
        )
        for name, held in module._parameters.items()
    }
    return module


def _is_plain(module: nn.Module) -> bool:
    """Whether a copy of the module can stand in for it without anybody noticing."""
    if isinstance(module, torch.jit.ScriptModule | nn.parallel.DistributedDataParallel) or compiled(module):
        return False
    if "forward" in vars(module) or any(getattr(module, name, None) for name in _HOOKS):
        return False
    return type(module).__module__.split(".")[0] in ("torch", "torchvision") or not _writes(type(module))


def compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` has made the module; asked without loading the compiler, which takes a second."""
    compiler = sys.modules.get("torch._dynamo")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def _writes(kind: type) -> bool:
    """Whether the forward method, or a method of the class that it names, may write to more than local variables."""
    waiting, known = ["forward"], set()
    while waiting:
        name = waiting.pop()
        known.add(name)
        code = getattr(getattr(kind, name, None), "__code__", None)
        if code is None:
            continue
        if any(each.opname in _WRITES or each.argval in _RECORDS for each in _instructions(code)):
            return True
        waiting += [other for other in code.co_names if other not in known and callable(getattr(kind, other, None))]
    return False


def _instructions(code: Any) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):  # a function inside
            yield from _instructions(constant)
