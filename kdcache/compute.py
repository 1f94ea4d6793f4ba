"""The device and the precision to compute with: one policy for training, evaluation and the teacher."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.errors import UsageError, first_line, memory_explained, problem

__all__ = ["Compute", "Stopwatch", "best_precision", "random_weights", "supports_bfloat16", "to_device"]

BFLOAT16_CPU_CAPABILITIES = ("avx512_bf16", "amx_bf16", "arm_bf16")
"""Capabilities of processors that compute bfloat16 in hardware."""

TF32_CAPABILITY, FLOAT16_CAPABILITY = (8, 0), (7, 0)
"""Compute capabilities from which on GPUs have TF32, and tensor cores for float16."""

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types in which networks compute instead of float32, by precision."""

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
        An item of `kdcache.choices.PRECISIONS`. Losses and statistics are always in float32.
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
            ``auto``, or an item of `kdcache.choices.PRECISIONS`; ``auto`` is `best_precision`.

        Raises
        ------
        UsageError
            If the device is not available, or does not have the precision.
        """
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if device == "auto":
            device = next(name for name, available in present.items() if available)
        if not present[device]:
            available = ", ".join(name for name, available in present.items() if available)
            raise UsageError(problem("--device is not available", expected=f"one of {available}", got=device))
        if precision == "auto":
            precision = best_precision(device)[0]
        # Under torchrun, each process of a machine uses the GPU of its local rank.
        place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
        compute = cls(torch.device(place), precision)
        compute.require_precision()
        return compute

    @classmethod
    def for_evaluation(cls, device: str, precision: str) -> "Compute":
        """Choose for a network that was trained in some precision: in float32 if the device does not have it."""
        chosen = cls.choose(device)
        try:
            return cls.choose(device, precision)
        except UsageError:
            return replace(chosen, precision="float32")

    def __str__(self) -> str:
        on_cuda = self.device.type == "cuda"
        return f"{self.precision} on {torch.cuda.get_device_name(self.device) if on_cuda else self.device.type}"

    def require_precision(self) -> None:
        """Refuse a precision that the device does not have: networks would be computed in another.

        Raises
        ------
        UsageError
        """
        kind = self.device.type
        if self.precision == "tf32" and not (kind == "cuda" and _capability() >= TF32_CAPABILITY):
            expected = f"a GPU of compute capability {'.'.join(map(str, TF32_CAPABILITY))} or newer"
            raise UsageError(problem("--precision tf32", expected=expected, got=kind))
        if self.precision == "float16" and kind == "mps":
            raise UsageError(problem("--precision float16", expected="cuda or cpu", got=kind))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Context in which networks compute at `precision`.

        A forward pass under ``no_grad`` and one that is trained need separate contexts: autocast caches the weights
        that it converted without gradient, and the second pass would train none of them.
        """
        self.require_precision()  # a store may state another than was chosen for this device
        dtype = AUTOCAST_DTYPES.get(self.precision)
        with self.float32_products(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    @contextmanager
    def float32_products(self) -> Iterator[None]:
        """Context in which a GPU computes products of float32 in TF32 if that is the `precision`, and not otherwise.

        By default, torch computes convolutions in TF32. A backward pass is outside of `autocast`, and needs this too.
        """
        if self.device.type != "cuda":
            yield
            return
        # The switches of older releases: torch.compile reads them, and refuses others beside them.
        switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = self.precision == "tf32"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value

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
        is_wide = self.precision not in AUTOCAST_DTYPES
        return memory_explained(work, f"--precision bfloat16, or {remedy}" if is_wide else remedy)


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


def best_precision(device: str) -> tuple[str, str]:
    """Find the fastest precision of a type of device in which networks train well, and the reason as a clause."""
    supported, reason = supports_bfloat16(device)
    if supported or device != "cuda":
        return "bfloat16" if supported else "float32", reason
    fast = _capability() >= FLOAT16_CAPABILITY
    return "float16" if fast else "float32", f"{reason}, and {'has' if fast else 'does not have'} fast float16"


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


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()
