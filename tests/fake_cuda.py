"""CUDA tensors without data on a machine without a GPU: what is on which device, what is copied, and what waits.

The kernels are those of the meta device, so no value is computed. What the host computes for itself stays real.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode, fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcache.compute import AUTOCAST_DTYPES, Compute

__all__ = ["CUDA", "Copy", "FakeCuda", "Wait"]

CUDA = torch.device("cuda:0")

aten = torch.ops.aten

COPIES = {aten._to_copy.default: 0, aten.copy_.default: 1}
"""Operations that may copy between devices, and which of their arguments is the source."""


class Copy(NamedTuple):
    """A copy from the host to the device."""

    size: int
    non_blocking: bool
    pinned: bool


class Wait(AssertionError):
    """The host would wait for the device."""


class _Event:
    """An event that the device reaches once the host waits for it."""

    def __init__(self, device: "FakeCuda") -> None:
        self._device = device

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        self._device.wait("event")

    def elapsed_time(self, end: "_Event") -> float:
        return 1.0


class FakeCuda(TorchDispatchMode):
    """Context in which tensors on `CUDA` have no data. Where the host would wait for one, an error is raised.

    Attributes
    ----------
    copies : list of Copy
        From the host to the device, so far.
    reads : int
        Copies from the device to the host within `reading`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if torch.__version__ < (2, 10):
            pytest.skip("torch before 2.10 asks for a driver before a dispatch mode is asked")
        super().__init__()
        self.copies: list[Copy] = []
        self.reads = 0
        self._may_read, self._pinned = False, {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)  # which asks for a driver
        monkeypatch.setattr(Compute, "autocast", _autocast)
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing=False: _Event(self))

    def __enter__(self) -> "FakeCuda":
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the host read values, all of which are 0."""
        with self._letting_read(True):
            yield

    @contextmanager
    def not_reading(self) -> Iterator[None]:
        """Refuse again to wait, within `reading`."""
        with self._letting_read(False):
            yield

    @contextmanager
    def _letting_read(self, may_read: bool) -> Iterator[None]:
        before, self._may_read = self._may_read, may_read
        try:
            yield
        finally:
            self._may_read = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args)
        if func is aten.is_pinned.default:
            return args[0].data_ptr() in self._pinned
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            with unset_fake_temporarily():
                pinned = args[0].clone()
            self._pinned[pinned.data_ptr()] = pinned
            return pinned
        leaves = tree_leaves((args, kwargs))
        if not any(_on_device(leaf) for leaf in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and (found := self._decomposed(func, args, kwargs)) is not NotImplemented:
            return found
        if func in COPIES:
            source = args[COPIES[func]]
            target = args[0].device if func is aten.copy_.default else kwargs.get("device") or source.device
            if target.type == "cpu" and _on_device(source):
                return self._read(func, args, kwargs, waits=not kwargs.get("non_blocking"))
            if source.device.type == "cpu":
                size, pinned = source.numel() * source.element_size(), source.data_ptr() in self._pinned
                self.copies.append(Copy(size, bool(kwargs.get("non_blocking")), pinned))
        elif func is aten._local_scalar_dense.default:
            return self._read(func, args, kwargs)
        else:
            strays = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.dim()]
            assert not strays, f"{func} of tensors on the device reads {strays} on the host"
        return func(*args, **kwargs)

    def wait(self, what: object) -> None:
        """Count a wait of the host, or refuse it."""
        if not self._may_read:
            raise Wait(f"the host waits for the device: {what}")
        self.reads += 1

    def _decomposed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self:
            return func.decompose(*args, **kwargs)

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], waits: bool = True) -> Any:
        if waits:
            self.wait(func)
        with unset_fake_temporarily():
            if func is aten._local_scalar_dense.default:
                return torch.zeros((), dtype=args[0].dtype).item()
            if func is aten.copy_.default:
                return args[0].zero_()
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


def _on_device(leaf: object) -> bool:
    return isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf.type == "cuda")


@contextmanager
def _autocast(compute: Compute) -> Iterator[None]:
    """What `torch.autocast` does, which asks for a driver."""
    kind = compute.device.type
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    dtype = AUTOCAST_DTYPES.get(compute.precision)
    torch.set_autocast_enabled(kind, dtype is not None)
    torch.set_autocast_dtype(kind, dtype or torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])
        torch.clear_autocast_cache()
