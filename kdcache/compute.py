"""The device and the precision to compute with: one policy for training, evaluation and the teacher."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.errors import UsageError, first_line, memory_explained, problem

__all__ = ["Compute", "Stopwatch", "random_weights", "supports_bfloat16", "to_device"]

BFLOAT16_CPU_CAPABILITIES = ("avx512_bf16", "amx_bf16", "arm_bf16")
"""Capabilities of processors that compute bfloat16 in hardware."""

_GENERATOR_LOCK = threading.RLock()


@contextmanager
def random_weights(seed: int | None = None) -> Iterator[None]:
    """Let layers draw their initial weights from a seed, and restore torch's global generator of the CPU at the end.

    Layers have no other generator. One thread at a time draws, so that weights do not depend on what other threads do.

    Parameters
    ----------
    seed : int, optional
        Without it, what is drawn is not seeded.
    """
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        yield


@dataclass(frozen=True)
class Compute:
    """A device, and the precision of networks on it.

    Attributes
    ----------
    device : torch.device
    precision : str
        ``float32`` or ``bfloat16``. Losses and statistics are always in float32.
    """

    device: torch.device
    precision: str

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> "Compute":
        """Resolve ``auto``.

        Parameters
        ----------
        device : str
            ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision : str
            ``auto``, ``float32`` or ``bfloat16``; ``auto`` is bfloat16 if the hardware computes it.

        Raises
        ------
        UsageError
            If the device is not available.
        """
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if device == "auto":
            device = next(name for name, available in present.items() if available)
        if not present[device]:
            available = ", ".join(name for name, available in present.items() if available)
            raise UsageError(problem("--device is not available", expected=f"one of {available}", got=device))
        if precision == "auto":
            precision = "bfloat16" if supports_bfloat16(device)[0] else "float32"
        # Under torchrun, each process of a machine uses the GPU of its local rank.
        place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
        return cls(torch.device(place), precision)

    def autocast(self) -> torch.autocast:
        """Context in which networks compute at `precision`.

        A forward pass under ``no_grad`` and one that is trained need separate contexts: autocast caches the weights
        that it converted without gradient, and the second pass would train none of them.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def compiled(self, module: nn.Module) -> nn.Module:
        """Wrap a module in torch.compile; the module itself is not changed.

        Raises
        ------
        UsageError
            If torch.compile does not work on the device.
        """
        try:
            torch.compile(torch.neg)(torch.zeros(1, device=self.device))
        except Exception as error:  # a missing compiler, its headers, or triton raise errors of many types
            what = f"--compile: torch.compile does not work on {self.device.type}"
            raise UsageError(problem(what, got=first_line(error), remedy="Train without --compile.")) from error
        return cast(nn.Module, torch.compile(module))

    def memory_explained(self, work: str, remedy: str) -> AbstractContextManager[None]:
        """Explain an out-of-memory error, see `kdcache.errors.memory_explained`; in float32, bfloat16 helps too."""
        return memory_explained(work, f"--precision bfloat16, or {remedy}" if self.precision == "float32" else remedy)


class Stopwatch:
    """Adds up the time that some work takes: on a GPU by its own events, since the host only enqueues the work there.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda, self._seconds = device.type == "cuda", 0.0
        self._pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of the work within."""
        if not self._on_cuda:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        yield
        pair[1].record()
        self._pairs.append(pair)
        while self._pairs and self._pairs[0][1].query():
            self._add_oldest()

    def pop(self) -> float:
        """Return the seconds since the last call, and reset them; waits for a GPU to do the work."""
        while self._pairs:
            self._pairs[0][1].synchronize()
            self._add_oldest()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _add_oldest(self) -> None:
        began, ended = self._pairs.popleft()
        self._seconds += began.elapsed_time(ended) / 1000


def to_device(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Copy values from the host to a device without waiting for it.

    A GPU copies in the background from pinned memory alone. What is on the device already is returned as it is.
    """
    values = torch.as_tensor(values)
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def supports_bfloat16(device: str) -> tuple[bool, str]:
    """Whether a type of device computes bfloat16 in hardware, and the reason as a clause."""
    if device == "cpu":
        # Older releases of torch do not report capabilities; float32 is the safe choice there.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        found = [name for name in BFLOAT16_CPU_CAPABILITIES if capabilities.get(name)]
        return bool(found), f"the processor has {', '.join(found) or 'none of ' + ', '.join(BFLOAT16_CPU_CAPABILITIES)}"
    if device == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported, f"the GPU {'has' if supported else 'does not have'} bfloat16"
    return False, f"kdcache does not use bfloat16 on {device}"
