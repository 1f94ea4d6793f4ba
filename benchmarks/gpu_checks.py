"""Whether results on a device are right: against the processor's, and from run to run. A part of `gpu.py`."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdcache.stages import train_student, train_teacher
from our_step import noise_dataset
from PIL import Image

from kdcache import models
from kdcache.answers.teacher import Teacher
from kdcache.choices import MIXES
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.report.progress import Reporter
from kdcache.run.folder import FinishedRun
from kdcache.setup import make_plan
from kdcache.training import LOSS_CHECK_STEPS, EpochProgress
from kdcache.views import ViewPlan, Views

__all__ = ["check_compilation", "check_teacher", "check_trainings", "check_views"]

CPU = torch.device("cpu")

MAX_MIXUP_ERROR = 1e-3
"""Of pixels from 0 to 255: mixup alone is computed in float32. All other views are integers, and must be equal."""

BATCH = 8
"""Images of a step of the small trainings, so that an epoch has more steps than are between two reads of the losses."""


def check_views(device: torch.device) -> Iterator[dict[str, Any]]:
    """Compare the views of a batch with those that the processor makes."""
    data = noise_dataset(2)
    for aug in ("none", "standard", *MIXES):
        plan = make_plan(StudentConfig(aug=aug, batch_size=64), data)
        yield _compare_views(aug, data.train, plan, device)
    for mix in ("cutmix", "trivialaugment"):  # of images of another size than the plan's
        plan = ViewPlan(len(data.train), 48, 4, crop_flip=False, seed=0, mixes=(mix,))
        yield _compare_views(f"{mix}, drawn for 48 pixels", data.train, plan, device)


def _compare_views(name: str, split: Any, plan: ViewPlan, device: torch.device) -> dict[str, Any]:
    expected, found = (next(Views(split, plan, 64, place).epoch(0)).views for place in (CPU, device))
    error = (expected.double() - found.cpu().double()).abs().max().item()
    limit = MAX_MIXUP_ERROR if expected.is_floating_point() else 0.0
    return {"views": name, "largest difference": error, "allowed": limit, "right": error <= limit}


def check_teacher(computes: list[Compute]) -> Iterator[dict[str, Any]]:
    """Compare the logits of a teacher in each precision with those in float32 on the processor."""
    images, of = noise_dataset(4).train.images, models.build("resnet20", num_classes=100, seed=0)
    assert images is not None
    expected = Teacher(of, Compute(CPU, "float32"))(images)
    for compute in computes:
        network = models.build("resnet20", num_classes=100, seed=0)
        found = Teacher(network, compute)(images.to(compute.device)).cpu()
        yield {
            "precision": compute.precision,
            "largest difference": f"{(found - expected).abs().max().item():.1e}",
            "logits up to": f"{expected.abs().max().item():.2f}",
            "same class, %": 100 * (found.argmax(1) == expected.argmax(1)).double().mean().item(),
        }


class _Interrupt(Reporter):
    """Interrupts a training in its second epoch, after a checkpoint."""

    def __init__(self) -> None:
        self._epoch = 0

    def end_epoch(self, metrics: object) -> None:
        self._epoch += 1

    def step(self, event: EpochProgress) -> None:
        if self._epoch and event.steps_done > LOSS_CHECK_STEPS:
            raise KeyboardInterrupt


class SmallTrainings:
    """Trainings on a few images that a folder is filled with, each in a run folder there.

    Parameters
    ----------
    root : Path
    compute : Compute
    """

    def __init__(self, root: Path, compute: Compute) -> None:
        _write_images(root / "images")
        self.root = root
        self.common: dict[str, Any] = {"dataset": f"folder:{root / 'images'}", "image_size": 32, "crop": "padded"}
        self.common |= {"workers": 0, "epochs": 2, "batch_size": BATCH, "model": "resnet8", "lr": 0.02}
        self.common |= {"device": compute.device.type, "precision": compute.precision, "checkpoint_minutes": 1e-6}
        self.teacher = train_teacher(TeacherConfig.load(**self.common, out=root / "teacher")).path

    def student(self, out: str, reporter: Reporter | None = None, **settings: Any) -> FinishedRun:
        """Train a student."""
        settings = {**self.common, "teacher": self.teacher, "aug": "cutmix-pick", "cache": "replay", **settings}
        return train_student(StudentConfig.load(**settings, out=self.root / out), reporter)


def check_trainings(compute: Compute) -> Iterator[dict[str, Any]]:
    """Repeat a small training, interrupt and resume it, and list the operations that may give other bits."""
    with tempfile.TemporaryDirectory() as name:
        trainings = SmallTrainings(Path(name), compute)
        first = trainings.student("first")
        yield _compare(compute, "repeated, with stored logits", first, trainings.student("second"))
        with contextlib.suppress(KeyboardInterrupt):
            trainings.student("third", _Interrupt())
        yield _compare(compute, "interrupted and resumed", first, trainings.student("third", resume=True))
        operations = _nondeterministic(lambda: trainings.student("fourth", epochs=1))
        found = "; ".join(operations) or "none"
        yield {"training": "operations that may give other bits", "precision": compute.precision, "found": found}


def check_compilation(compute: Compute) -> Iterator[dict[str, Any]]:
    """Compare a training of four steps with a compiled one: rounding has not yet changed what is picked."""
    with tempfile.TemporaryDirectory() as name:
        trainings = SmallTrainings(Path(name), compute)
        plain, compiled = (
            trainings.student(out, batch_size=64, epochs=1, compile=out == "compiled") for out in ("plain", "compiled")
        )
        yield _compare(compute, "compiled", plain, compiled)


def _compare(compute: Compute, training: str, first: FinishedRun, second: FinishedRun) -> dict[str, Any]:
    losses = [run.read_metrics()[-1].train_loss or 0.0 for run in (first, second)]
    return {
        "training": training,
        "precision": compute.precision,
        "same bits": first.network_file.read_bytes() == second.network_file.read_bytes(),
        "training loss of the last epoch": " and ".join(f"{loss:.5f}" for loss in losses),
        "skipped steps": sum(line.skipped_steps or 0 for line in second.read_metrics()),
    }


def _nondeterministic(train: Any) -> list[str]:
    """List the operations of a training that torch says are not deterministic."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            train()
        finally:
            torch.use_deterministic_algorithms(False)
    return sorted({str(one.message).split(" does not have")[0] for one in found if "determin" in str(one.message)})


def _write_images(root: Path) -> None:
    noise = np.random.Generator(np.random.Philox(0))
    for part, count in (("train", 64), ("val", 8)):
        for label in range(4):
            folder = root / part / f"class {label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 128, (32, 32, 3)) + 40 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.bmp")
