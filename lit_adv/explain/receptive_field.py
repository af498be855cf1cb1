"""Which pixels a unit of a layer can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from lit_adv.attacks.attack import _untouched
from lit_adv.explain.layers import check_layer, layer_output


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a layer's units see: unit (u, v) those from ``start + u * stride`` on, ``size`` of them.

    Each is a pair, of rows and columns, in pixels; pixel i spans [i, i + 1].

    Attributes:
        start: First pixel of unit 0; below 0 where it sees padding.
        size: Side of the field, of which a part may lie outside the image.
        stride: From one unit's field to the next; 0 where every unit sees the whole image.
    """

    start: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """Of unit (0, 0)."""
        return self.start[0] + self.size[0] / 2, self.start[1] + self.size[1] / 2

    def boxes(self, units: Tensor) -> Tensor:
        """Boxes ``(n, 4)`` int64, top, left, bottom and right (behind the last pixel), of units ``(n, 2)``; uncut."""
        first = units * units.new_tensor(self.stride) + units.new_tensor(self.start)
        return torch.cat([first, first + units.new_tensor(self.size)], 1)


def receptive_field(model: nn.Module, layer: str, image_shape: Sequence[int]) -> ReceptiveField:
    """The field of a layer's units, over all paths from the image to them.

    One image of zeros goes through the model, and every operation on its way says how fields change: convolutions and
    pooling of kernel k, stride s, padding p and dilation d make the size r + (k - 1) d j, the start a - p j and the
    stride s j of what was r, a and j; where paths meet, as at a shortcut, the hull counts. What a mean over the map has
    touched sees the whole image, as behind squeeze and excitation, group norm, or batch norm of the batch's own mean.

    Args:
        model: From images to anything; it is called in eval mode and left as it was.
        layer: Its name, see ``named_modules``; its output must be maps.
        image_shape: C, H and W.

    Raises:
        ValueError: There is no such layer, it gives no maps, or an operation before it mixes pixels in a way that has
            no fixed field, such as attention or resizing; name a layer before that one.
    """
    owner = "receptive_field"
    check_layer(owner, model, layer)
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"{owner}: image_shape must be (C, H, W), got {tuple(image_shape)}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with _untouched(model) as inner, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        image = torch.zeros(1, *image_shape, device=device)
        with _Fields(image) as fields:
            output = layer_output(owner, inner, image, layer)[1]
    if output.ndim != 4:
        raise ValueError(f"{owner}: layer must give maps (B, C, h, w), got {tuple(output.shape)} from {layer}")
    found = fields.of.get(output)
    if found is None:
        raise ValueError(f"{owner}: {layer} must depend on the image in a way that can be followed, got no path to it")
    if isinstance(found, str):
        raise ValueError(
            f"{owner}: {layer} has no field that can be told, since {found} comes before it (name a layer before that)"
        )
    starts, sizes, strides = zip(*found, strict=True)
    return ReceptiveField(starts, sizes, strides)


# of one direction: first pixel of unit 0, size and stride of the field
_Line = tuple[int, int, int]
_Field = tuple[_Line, _Line]
_aten = torch.ops.aten


class _Fields(TorchDispatchMode):
    """Follows the fields of all tensors; a string in their place names what has none.

    Attributes:
        of: By tensor.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.of: Any = WeakTensorKeyDictionary()
        self.whole: _Field = ((0, image.shape[2], 0), (0, image.shape[3], 0))
        self.of[image] = ((0, 1, 1), (0, 1, 1))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [each for each in _tensors([*args, *kwargs.values()]) if each in self.of]
        # before the call, since a call in place changes its input
        shapes, fields = [each.shape for each in given], [self.of[each] for each in given]
        output = func(*args, **kwargs)
        if given:
            made = self._made(func, args, kwargs, shapes, fields, output)
            for each in _tensors([output]):
                self.of[each] = made
        return output

    def _made(self, func: Any, args: Any, kwargs: Any, shapes: Any, fields: Any, output: Any) -> _Field | str:
        unknown = next((each for each in fields if isinstance(each, str)), None)
        if unknown is not None:
            return unknown
        if self.whole in fields:
            return self.whole
        packet = func.overloadpacket
        first, shape, out = fields[0], shapes[0], _tensors([output])[0].shape
        if packet in _WINDOWS:
            windows = _WINDOWS[packet](args, kwargs, shape)
            if windows is None:
                return str(packet)
            return _moved(first[0], *windows[0]), _moved(first[1], *windows[1])
        if packet is _aten.constant_pad_nd:
            left, _, top, _ = (*args[1], 0, 0)[:4]
            (y, height, down), (x, width, across) = first
            return (y - top * down, height, down), (x - left * across, width, across)
        if packet is _aten.slice:
            dim, start, _, step = _named(args, kwargs, (("dim", 0), ("start", None), ("end", None), ("step", 1)))
            place = dim % len(shape) - (len(shape) - 2)
            if place < 0:
                return first
            start = 0 if start is None else start % shape[dim] if start < 0 else start
            lines = list(first)
            begin, size, stride = lines[place]
            lines[place] = (begin + start * stride, size, stride * step)
            return lines[0], lines[1]
        if packet in _REDUCTIONS:
            kept = len(out) == len(shape) and out[-2:] == shape[-2:] and shape[-2:].numel() > 1
            return first if kept else self.whole
        # with the image's own mean and variance, as of an instance norm, every unit sees all of it
        if packet in _NORMALISATIONS or (packet in _BATCH_NORMS and args[5]):
            return self.whole
        if torch.Tag.pointwise in func.tags or packet in _JOINING:
            if packet is _aten.cat and _named(args, kwargs, (("dim", 0),))[0] % len(shape) >= len(shape) - 2:
                return str(packet)
            if any(each[-2:] != out[-2:] for each in shapes):
                return str(packet)
            return _hull(fields)
        # the last two dimensions are rows and columns as long as their sizes and their places stay
        if packet in _KEEPING and out[-2:] == shape[-2:]:
            return first
        if packet in (_aten.permute, _aten.transpose):
            dims = args[1:] if packet is _aten.transpose else [old for new, old in enumerate(args[1]) if new != old]
            if all(dim % len(shape) < len(shape) - 2 for dim in dims):
                return first
        return str(packet)


def _moved(line: _Line, kernel: int, stride: int, padding: int, dilation: int) -> _Line:
    start, size, step = line
    return start - padding * step, size + (kernel - 1) * dilation * step, step * stride


def _hull(fields: Sequence[_Field]) -> _Field | str:
    lines = []
    for place in range(2):
        starts, ends, strides = zip(*((a, a + r, j) for a, r, j in (each[place] for each in fields)), strict=True)
        if len(set(strides)) > 1:
            return "a meeting of paths of different strides"
        lines.append((min(starts), max(ends) - min(starts), strides[0]))
    return lines[0], lines[1]


def _convolution(args: Any, kwargs: Any, shape: Any) -> Any:
    weight, _, stride, padding, dilation, transposed = args[1:7]
    if transposed or len(weight.shape) != 4:
        return None
    return _windows(weight.shape[2:], stride, padding, dilation)


def _maximum(args: Any, kwargs: Any, shape: Any) -> Any:
    kernel, stride, padding, dilation, _ = _named(
        args, kwargs, (("kernel_size", 0), ("stride", []), ("padding", 0), ("dilation", 1), ("ceil_mode", False))
    )
    return _windows(kernel, stride or kernel, padding, dilation)


def _mean(args: Any, kwargs: Any, shape: Any) -> Any:
    kernel, stride, padding = _named(args, kwargs, (("kernel_size", 0), ("stride", []), ("padding", 0)))
    return _windows(kernel, stride or kernel, padding, 1)


def _adaptive(args: Any, kwargs: Any, shape: Any) -> Any:
    # windows of unequal sizes have no one field
    if any(side % parts for side, parts in zip(shape[-2:], args[1], strict=True)):
        return None
    windows = [side // parts for side, parts in zip(shape[-2:], args[1], strict=True)]
    return _windows(windows, windows, 0, 1)


def _windows(*numbers: Any) -> Any:
    pairs = [(each, each) if isinstance(each, int) else tuple(each) * (3 - len(each)) for each in numbers]
    return [tuple(pair[place] for pair in pairs) for place in range(2)]


def _named(args: Any, kwargs: Any, fields: Sequence[tuple[str, Any]]) -> list[Any]:
    """The arguments behind the first one."""
    return [
        args[place] if place < len(args) else kwargs.get(name, default)
        for place, (name, default) in enumerate(fields, 1)
    ]


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else _tensors(value) if isinstance(value, list | tuple) else []
    return found


_WINDOWS: dict[Any, Callable[[Any, Any, Any], Any]] = {
    _aten.convolution: _convolution,
    _aten.max_pool2d_with_indices: _maximum,
    _aten.avg_pool2d: _mean,
    _aten._adaptive_avg_pool2d: _adaptive,
    _aten.adaptive_max_pool2d: _adaptive,
}
_REDUCTIONS = {_aten.mean, _aten.sum, _aten.amax, _aten.max, _aten.var, _aten.var_mean, _aten.std}
_NORMALISATIONS = {_aten.native_group_norm}
# their sixth argument says whether they take the mean and variance of the batch
_BATCH_NORMS = {_aten.native_batch_norm, _aten.cudnn_batch_norm, _aten.miopen_batch_norm, _aten.batch_norm}
# joined or treated place by place, without a tag that says so
_JOINING = {
    _aten.cat,
    _aten.copy_,
    *_BATCH_NORMS,
    _aten._native_batch_norm_legit_no_training,
    _aten._batch_norm_no_update,
    _aten.hardswish,
    _aten.hardswish_,
    _aten.threshold_,
    _aten.prelu,
    _aten._prelu_kernel,
    _aten.rsub,
}
_KEEPING = {
    _aten.view,
    _aten._unsafe_view,
    _aten.reshape,
    _aten._reshape_alias,
    _aten.expand,
    _aten.clone,
    _aten._to_copy,
    _aten.detach,
    _aten.alias,
    _aten.contiguous,
    _aten.split,
    _aten.split_with_sizes,
    _aten.unsqueeze,
}
