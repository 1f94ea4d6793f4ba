"""How long steps take on a device, by its own events, and what they consist of. A part of `gpu.py`."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import ratios, spread
from our_step import BATCH, CLASSES, OurSteps, noise_dataset
from reference_step import CORES, Reference
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from kdcache import models
from kdcache.accuracy import evaluate
from kdcache.compute import Compute, Stopwatch
from kdcache.run.checkpoint import TrainingState

if TYPE_CHECKING:
    from gpu import Sizes

__all__ = ["profile_step", "time_evaluation", "time_steps"]

OPERATIONS = 15
"""Operations of a step that are listed, those with the most time on the device."""

HOST_STEPS = 5


def time_steps(pair: str, compute: Compute, sizes: "Sizes") -> Iterator[dict[str, Any]]:
    """Time the reference's step and ours in turn, both in the same precision."""
    split = noise_dataset(max(sizes.steps, 4 * CORES)).train
    teacher, student = pair.split(":")
    reference = Reference(teacher, student, split, BATCH, CLASSES, compute)
    with tempfile.TemporaryDirectory() as folder:
        ours = OurSteps(pair, sizes.steps, Path(folder), compute)
        of: dict[str, list[float]] = {"reference": [], "online": [], "cached": []}
        memory: dict[str, str] = {}
        for _ in range(sizes.repeats + 1):
            for name, found in of.items():
                _forget_peak(compute)
                steps = max(2, sizes.steps // 3)
                found.append(reference.run(steps) if name == "reference" else _time_epoch(ours, name))
                memory[name] = _peak(compute)
        for name, (_, *found) in of.items():  # the first ones warm up
            row = {"networks": pair.replace(":", " to "), "precision": compute.precision, "step": name}
            row |= {"ms": spread([1000 * value for value in found], 2)}
            row |= {"times faster": spread(ratios(of["reference"][1:], found), 2), "peak memory, MB": memory[name]}
            if name != "reference":
                row |= {"host, ms": f"{1000 * _host_seconds(ours, name):.2f}"}
                row |= {"device idle, %": _idle_share(ours, name, statistics.median(found))}
            yield row


def _time_epoch(ours: OurSteps, name: str) -> float:
    watch = Stopwatch(ours.compute.device)
    with watch.running():
        ours.train(name)
    return watch.pop() / len(ours.views.steps)


def _host_seconds(ours: OurSteps, name: str) -> float:
    """Median time in which the host enqueues a step, while the device has nothing else to do."""
    found = []
    for batch in _batches(ours, name):
        _synchronize(ours.compute)
        began = time.perf_counter()
        ours.steps[name](batch)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _idle_share(ours: OurSteps, name: str, seconds_per_step: float) -> str:
    """Share of a step in which no kernel runs; the time of kernels is that of a profile, that of the step is not."""
    if ours.compute.device.type != "cuda":
        return ""
    with _profiled(ours.compute) as found:
        number = sum(1 for _ in map(ours.steps[name], _batches(ours, name)))
        _synchronize(ours.compute)
    kernels = (event for event in found.events() if event.device_type == DeviceType.CUDA)
    busy = sum(event.self_device_time_total for event in kernels) / 1e6 / number
    return f"{100 * (1 - busy / seconds_per_step):.0f}"


def _batches(ours: OurSteps, name: str) -> Iterator[Any]:
    """The first batches of an epoch that has just begun."""
    ours.steps[name].recorder.begin_epoch(TrainingState())
    for _, batch in zip(range(HOST_STEPS), ours.views.epoch(0), strict=False):
        yield batch


def time_evaluation(computes: list[Compute], sizes: "Sizes") -> Iterator[dict[str, Any]]:
    """Time the evaluation of images that are in memory; it ends when its sums have been read."""
    split = noise_dataset(max(1, sizes.images // BATCH)).train
    for compute in computes:
        network = models.build("resnet20", num_classes=CLASSES, seed=0).to(compute.device)
        seconds = [_seconds(partial(evaluate, network, split, compute)) for _ in "123"]
        row = {"network": "resnet20", "precision": compute.precision, "images": len(split)}
        yield row | {"images/s": f"{len(split) / min(seconds[1:]):.0f}"}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def profile_step(pair: str, compute: Compute) -> Iterator[dict[str, Any]]:
    """List the operations of a step that take the most time on the device."""
    with tempfile.TemporaryDirectory() as folder:
        ours = OurSteps(pair, HOST_STEPS, Path(folder), compute)
        ours.train("online")
        with _profiled(compute) as found:
            number = sum(1 for _ in map(ours.steps["online"], _batches(ours, "online")))
            _synchronize(compute)
    on_cuda = compute.device.type == "cuda"
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    averages = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
    whole = sum(getattr(event, key) for event in averages)
    for event in averages[:OPERATIONS]:
        taken = getattr(event, key)
        yield {
            "operation": f"`{event.key[:60]}`",
            "calls a step": round(event.count / number, 1),
            "ms a step": round(taken / 1000 / number, 3),
            "share, %": round(100 * taken / whole, 1),
        }


def _profiled(compute: Compute) -> profile:
    on_cuda = [ProfilerActivity.CUDA] if compute.device.type == "cuda" else []
    return profile(activities=[ProfilerActivity.CPU, *on_cuda])


def _synchronize(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def _forget_peak(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)


def _peak(compute: Compute) -> str:
    return f"{torch.cuda.max_memory_allocated(compute.device) / 1e6:.0f}" if compute.device.type == "cuda" else ""
