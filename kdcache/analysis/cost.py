"""What a network costs: parameters, multiply-adds, bytes, and milliseconds an image."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache.analysis.evaluated_network import EvaluatedNetwork, Forward
from kdcache.choices import ModelSize
from kdcache.models.sizes import size_of

__all__ = ["BATCH_SIZES", "Cost", "Timing", "measure_cost", "measure_speed"]

BATCH_SIZES = (1, 32)
"""Images in a forward: one at a time, as on a phone, and many."""

WARM_UP_FORWARDS = 3
MIN_FORWARDS = 7
MIN_SECONDS = 0.3
"""Forwards are repeated for this long, and at least `MIN_FORWARDS` times."""


class Timing(NamedTuple):
    """Milliseconds an image over repeated forwards of a batch.

    Attributes
    ----------
    batch_size, forwards : int
    median, low, high : float
        Median and quartiles.
    """

    batch_size: int
    forwards: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """Size and speed of a network.

    Attributes
    ----------
    size : ModelSize or None
        ``None`` for an ONNX file.
    bytes : int
        Size of the file.
    precision : str
        Of the forwards, or the library that computes them.
    device : str
    threads : int or None
        On the CPU.
    timings : tuple of Timing
        For each of `BATCH_SIZES`.
    """

    size: ModelSize | None
    bytes: int
    precision: str
    device: str
    threads: int | None
    timings: tuple[Timing, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "parameters": self.size and self.size.parameters,
            "multiply_adds": self.size and self.size.multiply_adds,
            "bytes": self.bytes,
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
            "milliseconds_per_image": [
                {"batch_size": size, "forwards": forwards, "median": median, "quartiles": [low, high]}
                for size, forwards, median, low, high in self.timings
            ],
        }


@torch.inference_mode()
def measure_cost(one: EvaluatedNetwork, forward: Forward) -> Cost:
    """Measure the size and speed of a network on its device."""
    shape = (max(BATCH_SIZES), 3, one.split.image_size, one.split.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(one.device)
    size = None
    if forward.network is not None and forward.network.is_native:
        size = size_of(forward.network.body, forward.network.normalize(images[:1]))
    timings = tuple(measure_speed(forward.logits, images[:batch_size]) for batch_size in BATCH_SIZES)
    threads = torch.get_num_threads() if one.device.type == "cpu" else None
    return Cost(size, one.file.stat().st_size, one.precision, one.device.type, threads, timings)


def measure_speed(forward: Callable[[Tensor], object], images: Tensor) -> Timing:
    """Measure the time of a forward of some images (B, 3, H, W), after a few that are not counted."""
    measure = _cuda_milliseconds if images.device.type == "cuda" else _wall_milliseconds
    for _ in range(WARM_UP_FORWARDS):
        measure(forward, images)
    found: list[float] = []
    stop = time.perf_counter() + MIN_SECONDS
    while len(found) < MIN_FORWARDS or time.perf_counter() < stop:
        found.append(measure(forward, images) / len(images))
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    return Timing(len(images), len(found), median, low, high)


def _wall_milliseconds(forward: Callable[[Tensor], object], images: Tensor) -> float:
    start = time.perf_counter()
    forward(images)
    if images.device.type != "cpu":
        torch.accelerator.synchronize()
    return 1000 * (time.perf_counter() - start)


def _cuda_milliseconds(forward: Callable[[Tensor], object], images: Tensor) -> float:
    """Measure on the GPU, so that the time to synchronize with it does not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    forward(images)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
