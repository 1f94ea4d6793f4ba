"""Depthwise convolutions whose gradients are found fast on a processor.

For some shapes torch takes kernels there that treat each channel as a convolution of its own (oneDNN 3.12), and are
tens of times slower than they need to be: the gradient of what is convolved with a stride, in bfloat16, and the
gradient of weights with more than 3x3 taps, or on maps of fewer than 3x3 pixels.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

__all__ = ["forward", "suits"]

FAST = 3
"""Most taps of a kernel, and fewest pixels of a map, in either direction, for which torch finds all gradients fast."""

Pair = tuple[int, int]


def suits(module: nn.Module) -> bool:
    """Tell whether a module is a depthwise convolution that this is written for."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or not isinstance(module.padding, tuple):
        return False
    return 1 < module.groups == module.in_channels


def forward(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve; where it trains, and torch is slow, the gradients are found in another way."""
    trained = module.training and torch.is_grad_enabled() and x.device.type == "cpu"
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    strided = max(module.stride) > 1 and precision == torch.bfloat16
    slow = strided or max(module.kernel_size) > FAST or min(x.shape[2:]) < FAST
    if not (trained and slow):
        return nn.Conv2d.forward(module, x)
    given = (None if each is None else each.to(precision) for each in (x, module.weight, module.bias))
    convolved: Tensor = _Depthwise.apply(*given, module.stride, module.padding, module.dilation)
    return convolved


class _Depthwise(torch.autograd.Function):
    """The convolution as torch has it; of its gradients, each by kernels that are fast."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.shape = bias is not None, (stride, padding, dilation)
        return conv2d(x, weight, bias, stride, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = _gradient_of_input(gradient, x, weight, *ctx.shape)
        of_weight = _gradient_of_weight(gradient, x, weight, *ctx.shape)
        return of_x, of_weight, gradient.sum((0, 2, 3)) if ctx.biased else None, None, None, None


def _gradient_of_input(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Spread the gradient over the map that the convolution would give without stride, and go back from there."""
    height, width = (
        size + 2 * edge - apart * (taps - 1)
        for size, edge, apart, taps in zip(x.shape[2:], padding, dilation, weight.shape[2:], strict=True)
    )
    if max(stride) > 1:
        shape = (*gradient.shape[:2], height, width)
        whole = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
        whole[:, :, :: stride[0], :: stride[1]] = gradient
    else:
        whole = gradient
    return _gradients(whole, x, weight, (1, 1), padding, dilation, (True, False))[0]


def _gradient_of_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Find it for a few taps at a time, on a map whose edge is there, so that it has pixels enough."""
    rows, columns = padding
    x = pad(x, (columns, columns, rows, rows))
    found = torch.empty_like(weight)
    for places in product(*(_windows(taps) for taps in weight.shape[2:])):
        seen = [
            slice(place.start * apart, (place.stop - 1) * apart + step * (count - 1) + 1)
            for place, apart, step, count in zip(places, dilation, stride, gradient.shape[2:], strict=True)
        ]
        window: tuple[Any, ...] = (..., *places)
        part = x[:, :, seen[0], seen[1]].contiguous(memory_format=torch.channels_last)
        found[window] = _gradients(gradient, part, weight[window], stride, (0, 0), dilation, (False, True))[1]
    return found


def _windows(taps: int) -> list[slice]:
    """Cut the taps of a kernel, in one direction, into parts that are short enough."""
    return [slice(start, min(start + FAST, taps)) for start in range(0, taps, FAST)]


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Ask torch for the gradients of input and weight, those that are wanted."""
    nothing, groups = (0, 0), x.shape[1]
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, nothing, groups, (*wanted, False)
    )
    return of_x, of_weight
