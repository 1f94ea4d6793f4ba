"""Batch norm that trains fast on a processor, for any number of channels.

torch's kernel for the statistics takes a pixel's channels 16 or 32 at a time, and what is left over one by one (torch
2.14): 58 channels take three times as long as 64. Pixels that lie side by side in memory are therefore taken as one
that has several times the channels, and what comes out is put together. The gradient is found with even channels. All
arithmetic but for the putting together is torch's own.
"""

from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["forward", "suits"]

EVEN = 16
"""torch is fast where the channels are a multiple of it, but for just as many; so many numbers fill a cache line."""

LANE, WIDE = 32, 128
"""What the channels of pixels side by side are a multiple of, and how many they are at least."""


def suits(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm that this is written for."""
    if type(module) is not nn.BatchNorm2d:
        return False
    return module.affine and module.track_running_stats and bool(module.momentum)


def forward(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise by the statistics of the batch; what it gives is what torch's gives, up to rounding."""
    if not (module.training and _gains(module, x)):
        return nn.BatchNorm2d.forward(module, x)
    figures: tuple[Tensor, Tensor, Tensor] = _Normalised.apply(x, module.weight, module.bias, module.eps)
    normalised, mean, variance = figures
    if module.track_running_stats:
        assert module.running_mean is not None
        assert module.running_var is not None
        assert module.num_batches_tracked is not None
        count, rate = x.numel() // x.shape[1], module.momentum or 0.0
        module.running_mean.lerp_(mean, rate)
        module.running_var.lerp_(variance * (count / (count - 1)), rate)
        module.num_batches_tracked.add_(1)
    return normalised


def _gains(module: nn.BatchNorm2d, x: Tensor) -> bool:
    channels = module.num_features
    return (
        (channels % EVEN > 0 or channels == EVEN)
        and x.device.type == "cpu"
        and x.dtype in {torch.float32, torch.bfloat16}
        and module.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() % (channels * _together(channels)) == 0
        and not torch.compiler.is_compiling()
    )


def _together(channels: int) -> int:
    """Tell how many pixels are taken as one."""
    pixels = LANE // gcd(channels, LANE)
    while pixels * channels < WIDE:
        pixels *= 2
    return pixels


@cache
def _unread(channels: int) -> tuple[Tensor, ...]:
    """Make running statistics that torch's kernel may leave alone: without any, it rounds what it finds."""
    with torch.inference_mode(mode=False):
        return torch.zeros(2, channels).unbind()


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find means and variances (C,) of the channels of maps, in float32."""
    channels = x.shape[1]
    rows = x.permute(0, 2, 3, 1).view(-1, _together(channels) * channels)
    found = torch.ops.aten.batch_norm_update_stats(rows, *_unread(rows.shape[1]), 0.0)
    means, variances = (figures.view(-1, channels) for figures in found)
    between, mean = torch.var_mean(means, 0, correction=0)
    return mean, variances.mean(0).add_(between)


class _Normalised(torch.autograd.Function):
    """Maps normalised by their own statistics, and these: means and variances of the channels, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _statistics(x)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0], mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance = ctx.saved_tensors
        channels = x.shape[1]
        gradient, x = (_evened(each.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for each in (gradient, x))
        weight, mean, inverse = (_evened(each) for each in (weight, mean, (variance + ctx.eps).rsqrt()))
        # torch's own: by parts, it would be rounded twice more in bfloat16, or take longer in float32.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, (True, True, True)
        )
        of_x = of_x[:, :channels].contiguous(memory_format=torch.channels_last)
        return of_x, of_weight[:channels], of_bias[:channels], None


def _evened(values: Tensor) -> Tensor:
    """Add channels of zeros, the last dimension, until they fill cache lines.

    torch's threads add up a gradient side by side, and wait for one another where they share a line.
    """
    missing = -values.shape[-1] % EVEN
    return (pad(values, (0, missing)) if missing else values).contiguous()
