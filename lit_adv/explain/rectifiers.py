"""Other rules for the way back through rectifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Rule = Literal["gradient", "deconvnet", "guided"]


@contextmanager
def rectifier_rule(owner: str, model: nn.Module, rule: Rule) -> Iterator[None]:
    """Within it, gradients pass through every ReLU that the model calls by a rule; values stay as they are.

    With R what comes back and z what went in: ``1[z > 0] R`` for ``gradient``, ``max(R, 0)`` for ``deconvnet`` (Zeiler
    and Fergus 2014, arXiv:1311.2901, section 2.1), ``1[z > 0] max(R, 0)`` for ``guided`` (Springenberg et al. 2015,
    arXiv:1412.6806, section 3.4). Calls are caught, not modules swapped: ReLUs called as functions or methods, in place
    or from a module used several times follow the rule too, and the model is not touched. ReLU6 counts as a ReLU whose
    z is also below 6. Other activations keep their gradient.

    Args:
        owner: In the message.
        model: The network to be called.
        rule: See above.

    Raises:
        ValueError: The model is scripted, so that its calls cannot be seen.
    """
    if rule == "gradient":
        yield
        return
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(f"{owner}: the model must not be scripted, got a ScriptModule (its rectifiers are not seen)")
    with torch.compiler.set_stance("force_eager"), _Rectifiers(rule == "guided"):
        yield


class _Rectifiers(TorchFunctionMode):
    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided = guided

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = _rectifier(func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        z, top, inplace = call
        output = _Rectify.apply(z, top, self.guided)
        # a shortcut beside an activation in place sees what it has made of its input
        return z.copy_(output) if inplace else output


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, top: float | None, guided: bool) -> Tensor:
        ctx.guided = guided
        if guided:
            ctx.save_for_backward(z > 0 if top is None else (z > 0) & (z < top))
        return z.clamp(min=0, max=top)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None]:
        positive = incoming[0].clamp(min=0)
        return positive * ctx.saved_tensors[0] if ctx.guided else positive, None, None


_PLAIN = {torch.relu, Tensor.relu, F.relu}
_IN_PLACE = {torch.relu_, Tensor.relu_}
_CLIPPED = {F.hardtanh, F.hardtanh_}


def _rectifier(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, float | None, bool] | None:
    """Input, upper end and whether it works in place, of a call of a rectifier; None for any other call."""
    if func in _PLAIN or func in _IN_PLACE:
        named = dict(zip(("input", "inplace"), args, strict=False)) | kwargs
        return named["input"], None, func in _IN_PLACE or bool(named.get("inplace", False))
    if func is F.relu6:
        named = dict(zip(("input", "inplace"), args, strict=False)) | kwargs
        return named["input"], 6.0, bool(named.get("inplace", False))
    if func in _CLIPPED:
        named = dict(zip(("input", "min_val", "max_val", "inplace"), args, strict=False)) | kwargs
        if named.get("min_val", -1.0) == 0:
            return named["input"], float(named.get("max_val", 1.0)), func is F.hardtanh_ or bool(named.get("inplace"))
    return None
