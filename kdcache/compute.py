"""Where and how precisely to compute: one policy for training, evaluation and the teacher."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from kdcache.errors import UsageError, first_line, memory_explained, problem

__all__ = ["Compute", "bfloat16"]

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "arm_bf16")
"""What a processor may have that computes bfloat16."""


@dataclass(frozen=True)
class Compute:
    """A device, and the arithmetic of networks on it.

    Attributes
    ----------
    device : torch.device
    precision : str
        ``float32`` or ``bfloat16``. Losses and statistics are in float32 either way.
    """

    device: torch.device
    precision: str

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> "Compute":
        """Settle what ``auto`` leaves open.

        Parameters
        ----------
        device : str
            ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision : str
            ``auto``, ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the hardware computes it itself.

        Raises
        ------
        UsageError
            Where the device is not there.
        """
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if device == "auto":
            device = next(name for name, there in present.items() if there)
        if not present[device]:
            there = ", ".join(name for name, there in present.items() if there)
            raise UsageError(problem("--device", expected=there, got=device))
        if precision == "auto":
            precision = "bfloat16" if bfloat16(device)[0] else "float32"
        # Under torchrun, each process of a machine takes the GPU of its number.
        place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
        return cls(torch.device(place), precision)

    def autocast(self) -> torch.autocast:
        """Context in which networks compute at `precision`.

        A forward under ``no_grad`` and one that is trained need a context each: weights that autocast converted
        without gradient would be reused by the second, and receive none.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def compiled(self, module: nn.Module) -> nn.Module:
        """Make a module whose forward torch compiles for the shapes that it meets; `module` itself stays as it is.

        Raises
        ------
        UsageError
            Where there is no compiler for the device.
        """
        try:
            torch.compile(torch.neg)(torch.zeros(1, device=self.device))
        except Exception as error:
            # What is missing raises errors of many kinds: a compiler, its headers, triton.
            allowed = f"a machine where torch.compile works on {self.device.type}"
            raise UsageError(problem("--compile", expected=allowed, got=first_line(error))) from error
        return cast(nn.Module, torch.compile(module))

    def memory_explained(self, work: str, remedy: str) -> AbstractContextManager[None]:
        """Explain where the memory does not suffice, see `kdcache.errors`; where it is not in use, bfloat16 helps."""
        return memory_explained(work, f"--precision bfloat16, or {remedy}" if self.precision == "float32" else remedy)


def bfloat16(device: str) -> tuple[bool, str]:
    """Tell whether a kind of device computes bfloat16 itself, and how that is known."""
    if device == "cpu":
        # Older releases of torch cannot tell; there float32 is the safe answer.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        has = [name for name in CPU_BFLOAT16 if capabilities.get(name)]
        return bool(has), f"the processor has {', '.join(has) or 'none of ' + ', '.join(CPU_BFLOAT16)}"
    if device == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return has_it, f"the GPU {'has' if has_it else 'does not have'} bfloat16"
    return False, f"it is not used on {device}"
