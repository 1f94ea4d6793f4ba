"""ReLU of bfloat16 on a processor, by comparing integers.

torch converts each number to float32 and back (torch 2.14), which takes three times as long as to go through the
memory. Read as an integer, a positive number of bfloat16 is positive, and a negative one is no more than minus
infinity; what lies between that and 0 is not a number, and stays so.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import threshold

__all__ = ["forward", "suits"]

MINUS_INFINITY = -0x80
"""The bits of bfloat16's, as int16."""


def suits(module: nn.Module) -> bool:
    """Tell whether a module is a ReLU."""
    return type(module) is nn.ReLU


def forward(module: nn.ReLU, x: Tensor) -> Tensor:
    """Set what is negative to 0, in `x` itself where the module works in place."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return nn.ReLU.forward(module, x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _activated(x, module.inplace)
    activated: Tensor = _Activated.apply(x, module.inplace)
    return activated


def _activated(x: Tensor, inplace: bool) -> Tensor:
    found = threshold(x.view(torch.int16), MINUS_INFINITY, 0, inplace)
    return x if inplace else found.view(torch.bfloat16)


class _Activated(torch.autograd.Function):
    """What is activated, with the gradient that torch gives it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        activated = _activated(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(activated)
        return activated

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (activated,) = ctx.saved_tensors
        # torch's own: by integers a step takes as long, as these maps come from the memory and not from a cache.
        return torch.ops.aten.threshold_backward(gradient, activated, 0), None
