"""The training on CUDA tensors without data: every tensor on its device, and a host that does not wait for it.

Not shown, since no value is computed: that a kernel exists for each operation, the backward pass, and the fused SGD.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages import student as student_stage
from torch import Tensor

from kdcache import training
from kdcache.accuracy import evaluate
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.view_index import CropFlipLookup
from kdcache.choices import AUGMENTATIONS, CRITERIA, LOSSES, MIXES
from kdcache.compute import Compute, Stopwatch, to_device
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.optimization import Update
from kdcache.run.checkpoint import TrainingState
from kdcache.views import Batch, ViewPlan, Views
from tests import answers
from tests.fake_cuda import CUDA, FakeCuda, Wait
from tests.stubs import stub
from tests.test_step import SIZE, Bench

COMPUTE = Compute(CUDA, "bfloat16")

MAX_COPIES = 20
"""Copies from the host to the device in a step: images, labels, and what the table of views says of each."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def bench_on(device: FakeCuda, split: Split, **settings: Any) -> Bench:
    """A student and a teacher on the device, whose step does all but the update."""
    with device:
        bench = Bench(split, COMPUTE, stub, **settings)
    bench.step.update = lambda loss: None  # type: ignore[assignment]
    return bench


def take_steps(device: FakeCuda, bench: Bench, number: int = 2) -> None:
    """Take the first steps of an epoch, and check what they copy."""
    batches = bench.maker.epoch(0)
    for _ in range(number):
        device.copies.clear()
        with device:
            result = bench.step(next(batches))
        assert {value.device for value in result} == {CUDA}
        assert 0 < len(device.copies) <= MAX_COPIES
        assert all(copy.non_blocking and copy.pinned for copy in device.copies)


def sum_of_losses(**views: str) -> str:
    """The sum of all losses that these views may be used with."""

    def accepted(loss: str) -> bool:
        try:
            StudentConfig.load(loss=loss, **views)
        except UsageError:
            return False
        return True

    found = [name for name in LOSSES if accepted(name) or accepted(f"{name}+kd")]
    assert "kd" in found
    return "+".join(found)


@pytest.mark.parametrize("aug", [*AUGMENTATIONS, *MIXES, "cutmix+mixup", "randaugment+erasing"])
def test_every_loss_of_every_augmentation(aug: str, device: FakeCuda, noise: Split) -> None:
    take_steps(device, bench_on(device, noise, aug=aug, loss=sum_of_losses(aug=aug)))


def test_all_losses_are_among_them() -> None:
    sums = (sum_of_losses(aug=aug) for aug in ("standard", "randaugment"))
    assert {name for total in sums for name in total.split("+")} == {*LOSSES}


@pytest.mark.parametrize("pick", CRITERIA)
def test_every_criterion(pick: str, device: FakeCuda, noise: Split) -> None:
    take_steps(device, bench_on(device, noise, aug="cutmix+mixup", pick=pick, separate_forwards=True))


def test_cross_entropy_of_weighted_smoothed_and_unknown_labels(device: FakeCuda, noise: Split) -> None:
    settings = {"class_weights": "balanced", "label_smoothing": 0.1}
    bench = bench_on(device, noise, aug="cutmix", **settings)
    bench.step.config = bench.step.config.model_copy(update={"unlabelled": Path("more")})
    take_steps(device, bench)


def test_steps_on_stored_logits(device: FakeCuda, noise: Split, tmp_path: Path) -> None:
    bench = bench_on(device, noise, aug="cutmix-pick")
    maker = Views(noise, bench.maker.plan, SIZE, answers.CPU)
    list(answers.cached_teacher(tmp_path / "store", noise, maker).precompute(1))
    bench.step.teacher = answers.cached_teacher(tmp_path / "store", noise, bench.maker)
    take_steps(device, bench)
    assert bench.step.teacher.pop_counts() == (0, 2 * 3 * SIZE)


def test_steps_that_index_the_views_which_they_compute(device: FakeCuda, noise: Split) -> None:
    bench = bench_on(device, noise, aug="cutmix-pick")
    before, plan = bench.step.teacher, bench.maker.plan
    assert before is not None
    layout = before.encoding.layout(before.classes)
    index = CropFlipLookup(plan.samples * plan.standard_views, plan.samples, layout)
    cached_teacher = bench.step.teacher = CachedTeacher(before.teacher, before.views, view_index=index)
    keys = bench.batch.standard_keys
    index.add(keys[:20], {"logits": torch.zeros(20, 4).half()})
    take_steps(device, bench)
    assert cached_teacher.pop_counts() == (6 * SIZE - 20, 6 * SIZE)
    assert index.lookup(keys)[0].sum() == 20
    with device.reading():
        cached_teacher.begin_epoch()
    assert device.reads > 0
    assert index.lookup(keys)[0].all()


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "cutout", "trivialaugment"])
def test_views_of_another_size_than_the_plan(mix: str, device: FakeCuda, noise: Split) -> None:
    plan = ViewPlan(len(noise), 48, 4, crop_flip=False, seed=0, mixes=StudentConfig(aug=mix).augmentation.mixes)
    with device:
        batch = next(Views(noise, plan, SIZE, CUDA).epoch(0))
    assert batch.views.shape == (2 * SIZE, 3, 32, 32)
    assert all(copy.non_blocking and copy.pinned for copy in device.copies)


def test_an_epoch_waits_where_values_are_read(device: FakeCuda, noise: Split) -> None:
    bench = bench_on(device, noise, aug="cutmix-pick")

    def step(batch: Batch) -> training.StepResult:
        with device.not_reading():
            return bench.step(batch)

    with device, device.reading():
        (event,) = training.train_epoch(bench.maker.epoch(0), step, COMPUTE)
        assert event.loss == 0  # as every value that is read
        state = TrainingState(0, event.steps_done, event.loss_sum, **bench.recorder.state())
        bench.recorder.begin_epoch(state)
        recorded = bench.recorder.end_epoch(0, seconds=1.0)
    steps = len(bench.maker.steps)
    assert recorded["cache_hits"] == 0
    assert recorded["teacher_forwards"] == 3 * len(noise)
    assert event.steps_done == steps


def test_evaluation_copies_its_sums_once(device: FakeCuda, noise: Split) -> None:
    with device:
        network = stub(0).to(CUDA)
        device.copies.clear()
        with device.reading():
            evaluate(network, noise, COMPUTE, batch_size=40)
    assert device.reads == 1
    assert len(device.copies) == 2 * 4  # images and labels
    assert all(copy.non_blocking and copy.pinned for copy in device.copies)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_an_update_does_not_wait(
    precision: str, device: FakeCuda, noise: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device:
        student = stub(0).to(CUDA)
        update = Update(StudentConfig(optimizer="adamw", clip_grad=1.0, ema=0.9), Compute(CUDA, precision), student)

        def backward(loss: Tensor) -> None:
            for parameter in student.parameters():
                parameter.grad = torch.ones_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        for step in range(2):
            update.begin_step(0, step, 2)
            update(torch.zeros((), device=CUDA))


PLANTS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda d: d[0].item(),
    "bool": lambda d: bool(d[0] > 0),
    "tolist": lambda d: d.tolist(),
    "cpu": lambda d: d.cpu(),
    "copy": lambda d: torch.empty(d.shape).copy_(d),
    "nonzero": lambda d: d.nonzero(),
    "mask": lambda d: d[d > 0],
    "device": lambda d: d + torch.ones(d.shape),
    "index": lambda d: d[torch.tensor([1, 2])],
    "pageable": lambda d: torch.ones(3).to(d.device, non_blocking=True),
    "scalar": lambda d: torch.tensor(1.0, device=d.device),
    "blocking": lambda d: torch.tensor([1.0, 2.0], device=d.device),
    "many": lambda d: [to_device(torch.ones(3), d.device) for _ in range(MAX_COPIES)],
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_these_tests_find_in_a_step(
    plant: Callable[[Tensor], object], device: FakeCuda, noise: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    divergence = student_stage.kl_divergence

    def planted(*given: Any) -> Tensor:
        plant(d := divergence(*given))
        return d

    monkeypatch.setattr(student_stage, "kl_divergence", planted)
    bench = bench_on(device, noise)
    with pytest.raises((AssertionError, RuntimeError)):
        take_steps(device, bench, number=1)


def test_a_stopwatch_reads_the_events_of_the_device(device: FakeCuda) -> None:
    watch = Stopwatch(CUDA)
    for _ in range(3):
        with watch.running():
            pass
    with pytest.raises(Wait):
        watch.pop()
    with device.reading():
        assert watch.pop() == pytest.approx(3e-3)
        assert watch.pop() == 0
