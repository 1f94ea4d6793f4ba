"""Precisions: which one a device gets, what it refuses, and training in float16, whose loss is scaled."""

import copy
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages import train_student
from torch import Tensor, nn

from kdcache import models
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Split
from kdcache.errors import KdcacheError
from kdcache.losses import cross_entropy
from kdcache.optimization import Update
from kdcache.self_test import check_precision
from tests import answers
from tests.processes import outcome, start_command
from tests.samples import refusal

Settings = dict[str, Any]

CPU = torch.device("cpu")
FLOAT16, FLOAT32 = Compute(CPU, "float16"), Compute(CPU, "float32")

SCALER = torch.amp.GradScaler


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int], bool], None]:
    """Pretend that there is a GPU of some compute capability, which may have bfloat16."""

    def pretend(capability: tuple[int, int], bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    return pretend


@pytest.mark.parametrize(
    ("capability", "bfloat16", "expected", "reason"),
    [
        ((9, 0), True, "bfloat16", "the GPU has bfloat16"),
        ((7, 5), False, "float16", "the GPU does not have bfloat16, and has fast float16"),
        ((6, 1), False, "float32", "the GPU does not have bfloat16, and does not have fast float16"),
    ],
)
def test_auto_is_what_the_card_has(
    capability: tuple[int, int], bfloat16: bool, expected: str, reason: str, card: Callable[..., None]
) -> None:
    card(capability, bfloat16)
    compute = Compute.choose()
    assert (compute.device.type, compute.precision) == ("cuda", expected)
    assert str(compute) == f"{expected} on a GPU"
    assert check_precision("auto", "auto").text == f"{expected} on cuda, because {reason}"


def test_precisions_that_a_device_does_not_have(card: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "--precision tf32: expected a GPU of compute capability 8.0 or newer, got "
    assert refusal(lambda: Compute.choose("cpu", "tf32")) == expected + "cpu"
    assert Compute.for_evaluation("cpu", "tf32") == FLOAT32
    assert Compute.for_evaluation("cpu", "float16") == FLOAT16
    card((7, 5), False)
    assert refusal(lambda: Compute.choose("cuda", "tf32")) == expected + "cuda"
    card((8, 0), True)
    assert Compute.choose("cuda", "tf32").precision == "tf32"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert refusal(lambda: Compute.choose("mps", "float16")).startswith("--precision float16: expected cuda or cpu")


def test_logits_in_tf32_are_read_anywhere_and_computed_where_it_is(noise: Split, tmp_path: Path) -> None:
    of = answers.teacher(precision="tf32")
    store = answers.store(tmp_path / "store", of, noise)
    assert store.precision == "tf32"
    assert refusal(lambda: of(noise.images)).startswith("--precision tf32: expected a GPU")  # type: ignore[arg-type]


def test_tf32_is_on_in_its_context_alone() -> None:
    def switches() -> list[bool]:
        return [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]

    before = switches()
    for precision in ("tf32", "float32", "bfloat16"):
        with Compute(torch.device("cuda"), precision).float32_products():
            assert switches() == [precision == "tf32"] * 2
    assert switches() == before


def test_the_backward_pass_is_in_tf32_too() -> None:
    seen, trained = [], network()
    weight = next(trained.parameters())
    weight.register_hook(lambda gradient: seen.append(torch.backends.cudnn.allow_tf32))
    for precision in ("tf32", "float32"):
        Update(TeacherConfig(), Compute(torch.device("cuda"), precision), trained)(losses(trained, 0))
    assert seen == [True, False]


def network() -> models.Network:
    return models.build("resnet8", num_classes=4, seed=0)


def losses(of: models.Network, number: int) -> Tensor:
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return 10 * cross_entropy(of(images), torch.arange(8) % 4)


def updated(compute: Compute, factors: tuple[float, ...], **settings: Any) -> tuple[Update, dict[str, Tensor]]:
    """Train for a step on each factor times a loss, whose forward is in float32; only finite losses have new images."""
    trained = network()
    update = Update(TeacherConfig(lr=0.1, ema=0.75, **settings), compute, trained)
    turn = 0
    for factor in factors:
        states = copy.deepcopy(trained.state_dict())
        update(factor * losses(trained, turn))
        if factor == 1:
            turn += 1
        else:  # the forward has changed running statistics
            trained.load_state_dict(states)
    return update, {**trained.state_dict(), **update.evaluated.state_dict(prefix="average.")}


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.9), ("sgd", 0.0), ("adamw", 0.9)])
def test_a_scaled_loss_gives_the_same_updates(optimizer: str, momentum: float) -> None:
    settings = {"clip_grad": 0.3, "optimizer": optimizer, "momentum": momentum}
    _, scaled = updated(FLOAT16, (1, 1, 1), **settings)
    _, plain = updated(FLOAT32, (1, 1, 1), **settings)
    for name, value in scaled.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_with_infinite_gradients_changes_nothing(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(True)  # memory that is never written is NaN then
    try:
        update, skipping = updated(FLOAT16, (torch.inf, 1, torch.inf, 1, torch.inf), clip_grad=0.3, optimizer=optimizer)
        _, plain = updated(FLOAT16, (1, 1), clip_grad=0.3, optimizer=optimizer)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in skipping.items():
        if "n_averaged" not in name:
            assert value.equal(plain[name]), name
    assert update.scale is not None
    assert update.scale.get_extra_state().tolist() == [2**13, 0]
    assert [update.scale.pop_skipped(), update.scale.pop_skipped()] == [3, 0]


def test_gradients_that_no_scale_makes_finite_end_the_training() -> None:
    update, _ = updated(FLOAT16, (torch.inf,) * 37)
    assert update.scale is not None
    message = refusal(update.scale.pop_skipped, KdcacheError)
    assert message.startswith("loss scale of float16: expected finite gradients, got gradients that are not finite")


def convolutions(num_classes: int) -> nn.Module:
    """A network that takes milliseconds, also in float16 on a processor."""
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, num_classes))


def use_large_scale() -> None:
    """Scale losses by so much at first that steps are skipped."""
    torch.amp.GradScaler = partial(SCALER, init_scale=2.0**32, growth_interval=7)  # type: ignore[assignment,misc]


def test_a_training_in_float16_resumes_to_the_bit(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**small, "precision": "float16", "epochs": 2, "batch_size": 3, "checkpoint_minutes": 1e-6, "ema": 0.9}
    settings |= {"model": f"python:{__name__}:convolutions", "loss": "ce", "aug": "cutmix", "clip_grad": 1.0}
    run = tmp_path / "run"
    command = start_command("student-train", {**settings, "out": run}, use_large_scale)
    while command.process.is_alive() and not list(run.glob("checkpoints/epoch-0000000-step-0000020*")):
        time.sleep(0.002)
    command.kill()
    caplog.set_level(logging.INFO, "kdcache")
    monkeypatch.setattr(torch.amp, "GradScaler", SCALER)
    use_large_scale()
    resumed = train_student(StudentConfig.load(**settings, out=run, resume=True))
    assert resumed.summary["resumed"] == [{"epoch": 1, "step": 20}]
    whole = train_student(StudentConfig.load(**settings, out=tmp_path / "whole"))
    assert outcome(resumed.path) == outcome(whole.path)
    skipped = [line.skipped_steps for line in whole.read_metrics()]
    assert skipped == [line.skipped_steps for line in resumed.read_metrics()]
    assert skipped[0]
    assert f"epoch 1: skipped {skipped[0]} steps, whose gradients overflowed in float16" in caplog.text
    assert whole.read_environment()["precision"] == "float16"
