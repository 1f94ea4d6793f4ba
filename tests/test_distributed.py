"""Distributed training: its outcome compared with one process, resuming, and the death of a process."""

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from kdcache.stages import train_student, train_teacher
from safetensors.torch import load_file

from kdcache import distributed
from kdcache.accuracy import Accuracy, evaluate
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.extensions import trust
from kdcache.forwards import FrozenRunningStats
from kdcache.losses import ViewOutputs, build_objective, kl_divergence
from kdcache.models import build
from kdcache.models.checkpoint import save
from kdcache.optimization import Update
from kdcache.run.checkpoint import Checkpoints
from kdcache.run.folder import FinishedRun
from kdcache.setup import fresh_network, load_data, make_plan
from kdcache.teachers import open_cached_teacher
from kdcache.views import Views, rank_part
from tests.processes import Command, kdcache, run_ranks, start_ranks, start_torchrun, without_advice
from tests.samples import write_unlabelled

ROOT = Path(__file__).parents[1]
Settings = dict[str, Any]


def plain(num_classes: int) -> torch.nn.Module:
    """A network without batch norm, whose rows are independent."""
    layers = (torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2, 1), torch.nn.ReLU())
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, num_classes)
    )


STOPPED = "kdcache: stopped. Completed work is saved."

PLAIN = "python:tests.test_distributed:plain"


class Finalizer:
    """Reports when the interpreter is finalized."""

    def __del__(self, write: Callable[[int, bytes], int] = os.write) -> None:
        write(2, b"interpreter finalized\n")


def reporting_network(num_classes: int) -> torch.nn.Module:
    """A network whose process reports how it exits."""
    atexit.register(os.write, 2, b"left\n")
    sys.finalizer = Finalizer()  # type: ignore[attr-defined] # `sys` is cleared even if this module is not
    return plain(num_classes)


def start_interpreters(ranks: int, command: str, settings: Settings, out: Path) -> "subprocess.Popen[str]":
    """Start a training in new interpreters; torchrun only starts several."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    words = [sys.executable, *torchrun, "-m", "kdcache", command, *options, f"--out={out}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.Popen(words, env=environment, cwd=out.parent, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def finished(ranks: list[Command], out: Path) -> FinishedRun:
    ended = [rank.wait() for rank in ranks]
    assert [rank.returncode for rank in ended] == [0] * len(ranks), [rank.stderr for rank in ended]
    assert ["run: " in rank.stdout for rank in ended] == [True] + [False] * (len(ranks) - 1)
    return FinishedRun(out)


def assert_alike(one: FinishedRun, many: FinishedRun) -> None:
    for line, other in zip(one.read_metrics(), many.read_metrics(), strict=True):
        for name in ("train_loss", "train_top1", "test_loss", "test_top1", "kl_ratio", "label_disagreement"):
            expected = getattr(line, name)
            assert getattr(other, name) == (None if expected is None else pytest.approx(expected, rel=1e-4)), name
        assert other.loss_parts == pytest.approx(line.loss_parts, rel=1e-4)
        assert (other.teacher_forwards, other.cache_hits) == (line.teacher_forwards, line.cache_hits)
    mine, theirs = (load_file(run.path / "model.safetensors") for run in (one, many))
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5)
    if (one.path / "statistics.zarr").exists():
        first, second = (zarr.open_group(run.path / "statistics.zarr", mode="r") for run in (one, many))
        assert np.array_equal(first["picked"], second["picked"])  # type: ignore[arg-type]
        for name in ("d_x", "d_mixed", "kl_ratio", "disagreements", "losses"):
            np.testing.assert_allclose(first[name], second[name], rtol=5e-3, atol=1e-4)  # type: ignore[arg-type]


RECIPE = {
    **{"optimizer": "adamw", "lr": 0.003, "schedule": "cosine", "warmup_epochs": 0.5, "freeze_epochs": 1},
    **{"ema": 0.9, "clip_grad": 0.5, "label_smoothing": 0.1, "class_weights": "balanced"},
}
FEW_LABELS = {"train_fraction": 0.1, "batch_size": 4}
"""9 images with labels and 24 without: in some steps one process has no label, in others none has."""


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    """Weights of `plain`."""
    weights, half = tmp_path / "net.safetensors", (0.5, 0.5, 0.5)
    trust(PLAIN)
    save(build(PLAIN, num_classes=3, seed=5, mean=half, std=half), weights)
    return weights


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, {"aug": "cutmix-pick", "loss": "crd+kd", "cache": "replay", "candidates": 3, "keep": 0.2}),
        (2, {"aug": "randaugment", "loss": "crld+dkd+ctkd", "cache": "off"}),
        (2, {"aug": "cutmix", "loss": "ce+kd", "cache": "off", **RECIPE, **FEW_LABELS}),
        (4, {"aug": "cutmix", "pick": "random", "keep": 0.06, "loss": "ce"}),  # some process has no picks
    ],
)
def test_several_processes_match_a_single_one(
    ranks: int, settings: Settings, small: Settings, teacher: Path, initial: Path, tmp_path: Path
) -> None:
    settings = {**small, "model": PLAIN, "teacher": teacher, "epochs": 2, "lr": 0.1, **settings}
    if "freeze_epochs" in settings:
        unlabelled = write_unlabelled(tmp_path / "unlabelled")
        settings |= {"init": str(initial), "unlabelled": f"folder:{unlabelled}"}
    stores = [{"store": str(tmp_path / name)} if "cache" in settings else {} for name in ("one.zarr", "many.zarr")]
    processes = start_ranks(ranks, "student-train", settings | stores[1] | {"out": tmp_path / "many"})
    one = train_student(StudentConfig.load(**settings, **stores[0], out=tmp_path / "one"))
    assert_alike(one, finished(processes, tmp_path / "many"))


def test_several_processes_train_a_teacher(small: Settings, initial: Path, tmp_path: Path) -> None:
    settings = {**small, "model": PLAIN, "init": str(initial), "epochs": 2, "batch_size": 7}
    processes = start_ranks(2, "teacher-train", settings | {"out": tmp_path / "many"})
    one = train_teacher(TeacherConfig.load(**settings, out=tmp_path / "one"))
    many = finished(processes, tmp_path / "many")
    assert_alike(one, many)
    assert many.summary["teacher_forwards"] == 90


def test_batch_norm_uses_the_statistics_of_each_process(small: Settings, teacher: Path, tmp_path: Path) -> None:
    settings = {**small, "teacher": teacher, "aug": "cutmix", "cache": "off", "lr": 0.02}
    processes = start_ranks(2, "student-train", settings | {"out": tmp_path / "many"})
    config = StudentConfig.load(**settings)
    data, cpu = load_data(config), Compute(torch.device("cpu"), "float32")
    student, views = fresh_network(config, data), Views(data.train, make_plan(config, data), 32, cpu.device)
    cached_teacher = open_cached_teacher(config, data, views, cpu)
    objective = build_objective(config, student, cached_teacher.teacher.network, data.train.labels)
    update = Update(config, cpu, student)
    for batch in views.epoch(0):
        teacher_logits, size, parts = cached_teacher.logits(batch), len(batch), []
        for rank in range(2):
            part = rank_part(range(size), rank, 2)
            rows = torch.cat([torch.arange(size)[part], size + torch.arange(size)[part]])
            # The running statistics are those of the main process.
            with FrozenRunningStats(student) if rank else nullcontext():
                logits = student(batch.views[rows])
            kl = kl_divergence(logits, teacher_logits[rows], 4.0)
            x, mixed = (
                ViewOutputs(*columns, batch.labels[part], batch.samples[part])
                for columns in zip(logits.chunk(2), teacher_logits[rows].chunk(2), kl.chunk(2), strict=True)
            )
            parts.append(sum(objective(x, mixed).values()) * len(part) / size)
        update(sum(parts))
    single = train_student(StudentConfig.load(**settings, out=tmp_path / "one"))
    many = load_file(finished(processes, tmp_path / "many").path / "model.safetensors")

    def distance(other: dict[str, torch.Tensor]) -> float:
        return sum(float((many[name] - tensor).square().sum()) for name, tensor in other.items()) ** 0.5

    assert distance(student.body.state_dict()) < 0.03 * distance(load_file(single.path / "model.safetensors"))


def one_step_in_50_ms() -> None:
    """Let a training go on until a signal comes, however busy the machine is."""
    due = Checkpoints.due
    Checkpoints.due = lambda checkpoints: time.sleep(0.05) or due(checkpoints)  # type: ignore[method-assign]


def has_open(process: Path, file: Path) -> bool:
    with suppress(OSError):  # another file was closed meanwhile
        return any(Path(os.readlink(descriptor)) == file for descriptor in process.glob("fd/*"))
    return has_open(process, file)


def test_a_dead_process_stops_the_others_and_a_single_one_resumes(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "model": PLAIN, "teacher": teacher, "aug": "cutmix", "cache": "off", "epochs": 6}
    settings["batch_size"] = 9
    out = tmp_path / "many"
    torchrun = start_torchrun(
        3, "student-train", settings | {"checkpoint_minutes": 1e-6, "out": out}, one_step_in_50_ms
    )
    while torchrun.process.is_alive() and not list(out.glob("checkpoints/epoch-0000001*")):
        time.sleep(0.01)
    (main,) = (child for child in torchrun.children() if has_open(child, out / "run.lock"))
    os.kill(int(main.name), signal.SIGKILL)  # which prints
    ended = torchrun.wait(60)
    assert ended.returncode != 0
    errors = ended.stderr
    (line,) = (line for line in without_advice(errors).splitlines() if "kdcache: " in line)
    # torchrun sends SIGTERM to the others, which may be on their way out of the training by then.
    assert line.startswith(("kdcache: lost the connection to another process of this training", STOPPED))
    assert "kdcache.signals" not in errors  # no traceback
    assert not (out / "summary.json").exists()
    resumed = train_student(StudentConfig.load(**settings, out=out, resume=True))
    one = train_student(StudentConfig.load(**settings, out=tmp_path / "one"))
    for line, other in zip(one.read_metrics(), resumed.read_metrics(), strict=True):
        assert other.train_loss == pytest.approx(line.train_loss, rel=1e-3)
    assert len(resumed.summary["resumed"]) == 1


def terminated_while_it_fails() -> None:
    """Let SIGTERM come from torchrun, because another process has failed too, before the error is printed."""
    os.environ["WORLD_SIZE"] = "2"
    distributed.is_first_to_exit = lambda: os.kill(os.getpid(), signal.SIGTERM) is None


def test_an_error_is_printed_even_if_sigterm_comes_first(tmp_path: Path) -> None:
    done = kdcache("teacher-train", "--epochs", "0", cwd=tmp_path, prepare=terminated_while_it_fails)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("kdcache: --epochs: ")


def test_several_processes_resume(small: Settings, teacher: Path, tmp_path: Path) -> None:
    settings = {**small, "model": PLAIN, "teacher": teacher, "aug": "cutmix-pick", "cache": "off", "epochs": 3}
    settings |= {"batch_size": 9, "loss": "crd+kd", "pick_scope": "rank", "checkpoint_minutes": 1e-6}
    whole, out = tmp_path / "whole", tmp_path / "broken"
    expected = finished(start_ranks(2, "student-train", settings | {"out": whole}), whole)
    torchrun = start_torchrun(2, "student-train", settings | {"out": out}, one_step_in_50_ms)
    while torchrun.process.is_alive() and not list(out.glob("checkpoints/epoch-0000001-*")):
        time.sleep(0.01)
    torchrun.process.terminate()  # torchrun forwards SIGTERM
    (line,) = (line for line in without_advice(torchrun.wait(60).stderr).splitlines() if "kdcache: " in line)
    assert line.startswith(STOPPED)
    assert not (out / "summary.json").exists()
    again = finished(start_ranks(2, "student-train", settings | {"out": out, "resume": True}), out)
    assert again.summary["resumed"][0]["epoch"] > 1
    assert_alike(expected, again)
    picked = zarr.open_group(again.path / "statistics.zarr", mode="r")["picked"]
    assert np.asarray(picked[:]).sum(axis=(1, 2)).tolist() == [90] * 3  # type: ignore[index]


def test_distributed_processes_exit_without_finalizing_the_interpreter(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "model": "python:tests.test_distributed:reporting_network"}
    ends = {}
    for processes in (1, 2):
        process = start_interpreters(processes, "teacher-train", settings, tmp_path / str(processes))
        output, ends[processes] = process.communicate(timeout=200)
        assert process.returncode == 0
        assert f"run: {tmp_path / str(processes)}" in output
    assert [ends[processes].count("left") for processes in ends] == [1, 2]
    assert [ends[processes].count("interpreter finalized") for processes in ends] == [1, 0]


def accuracy(images: int) -> Accuracy:
    """Evaluate the same network in each process."""
    torch.manual_seed(4)
    split = Split(torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8), torch.arange(images) % 3)
    network = build("resnet8", num_classes=3, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
    return evaluate(network, split, Compute(torch.device("cpu"), "float32"), batch_size=2)


@pytest.mark.parametrize("images", [1, 2, 8])
def test_each_image_is_evaluated_once_even_if_a_process_has_none(images: int) -> None:
    alone = accuracy(images)
    for other in run_ranks(3, accuracy, images):
        assert (other.top1, other.top5) == (alone.top1, alone.top5)
        assert other.loss == pytest.approx(alone.loss, rel=1e-5)


def test_sync_batchnorm_needs_cuda(small: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--sync-batchnorm: expected --device cuda, got --device cpu"):
        train_teacher(TeacherConfig.load(**small, sync_batchnorm=True, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
