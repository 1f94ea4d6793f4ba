"""Optimizers, schedules, averaged weights, and labels that are smoothed or weighted."""

import copy
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kdcache.stages import train_student, train_teacher
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcache import models, optimization
from kdcache.accuracy import evaluate
from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.answers.store import AnswerStore
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import UsageError
from kdcache.losses import balanced_class_weights, cross_entropy, mixed_cross_entropy
from kdcache.models import checkpoint
from kdcache.optimization import Update
from kdcache.run.folder import FinishedRun
from kdcache.run.writer import RunWriter
from kdcache.setup import fresh_network, load_data
from kdcache.stores import verify_store
from kdcache.views import ViewPlan, Views
from tests.processes import outcome
from tests.samples import small_settings

Settings = dict[str, Any]

CPU = Compute(torch.device("cpu"), "float32")


def rates(steps: int, **settings: Any) -> list[float]:
    config = TeacherConfig(**settings)
    return [config.learning_rate(epoch, step, steps) for epoch in range(config.epochs) for step in range(steps)]


def test_a_cosine_falls_from_the_end_of_the_warm_up_to_the_last_step() -> None:
    found = rates(2, epochs=4, lr=1.0, schedule="cosine", warmup_epochs=1, min_lr=0.2)
    falling = [0.2 + 0.8 * (1 + math.cos(math.pi * sixths / 6)) / 2 for sixths in range(6)]
    assert found == pytest.approx([0.01, 0.505, *falling])
    assert found[5] == pytest.approx(0.6)  # in the middle


def test_steps_follow_a_warm_up_at_the_same_epochs() -> None:
    plain = rates(4, epochs=8, lr=0.4, milestones=(0.5, 0.75), gamma=0.1)
    assert plain == pytest.approx([0.4] * 16 + [0.04] * 8 + [0.004] * 8)
    warm = rates(4, epochs=8, lr=0.4, milestones=(0.5, 0.75), gamma=0.1, warmup_epochs=1.5)
    assert warm[6:] == plain[6:]
    assert warm[:3] == pytest.approx([0.004, 0.004 + 0.396 / 6, 0.004 + 0.396 / 3])


@given(st.integers(1, 50), st.integers(1, 20), st.floats(0, 0.99), st.floats(0, 1))
def test_no_rate_is_above_the_highest_or_below_the_lowest(epochs: int, steps: int, warm: float, low: float) -> None:
    schedule = {"schedule": "cosine", "warmup_epochs": warm * epochs, "min_lr": 0.3 * low, "lr": 0.3}
    found = rates(steps, epochs=epochs, **schedule)
    after = [rate for number, rate in enumerate(found) if number / steps >= warm * epochs]
    assert max(found) <= 0.3 * (1 + 1e-9)
    assert all(rate >= 0.3 * low * (1 - 1e-9) for rate in after)
    assert after == sorted(after, reverse=True)


def trained(update: Update, network: models.Network, steps: int = 3) -> list[dict[str, Tensor]]:
    """Weights after each step on fixed images, whose gradients differ from step to step."""
    generator, states = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        images = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
        update(10 * cross_entropy(network(images), torch.arange(8) % 4))
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    return states


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_update_is_that_of_torch_with_clipped_gradients(optimizer: str) -> None:
    network = models.build("resnet8", num_classes=4, seed=0)
    plain = copy.deepcopy(network)
    nesterov = {"nesterov": True} if optimizer == "sgd" else {}
    config = TeacherConfig(
        optimizer=optimizer, lr=0.1, weight_decay=0.1, clip_grad=0.3, decay_norm_and_bias=False, **nesterov
    )
    *_, after = trained(Update(config, CPU, network), network)

    flat = [parameter for parameter in plain.parameters() if parameter.ndim == 1]
    others = [parameter for parameter in plain.parameters() if parameter.ndim != 1]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    reference: torch.optim.Optimizer = torch.optim.SGD(groups, 0.1, 0.9, nesterov=True, foreach=False)
    if optimizer == "adamw":
        reference = torch.optim.AdamW(groups, 0.1, (0.9, 0.999), foreach=False)

    class Reference(Update):
        def __call__(self, loss: Tensor) -> None:
            reference.zero_grad()
            loss.backward()
            norm = torch.stack([parameter.grad.norm() for parameter in plain.parameters()]).norm()  # type: ignore
            assert norm > 0.3
            for parameter in plain.parameters():
                parameter.grad *= 0.3 / (norm + 1e-6)  # type: ignore[operator]
            reference.step()

    *_, expected = trained(Reference(config, CPU, plain), plain)
    for name, value in after.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_averaged_weights_are_evaluated_with_averaged_buffers() -> None:
    network = models.build("resnet8", num_classes=4, seed=0)
    update = Update(TeacherConfig(lr=0.1, ema=0.75), CPU, network)
    states = trained(update, network)
    assert update.evaluated is not network
    for name, value in update.evaluated.state_dict().items():
        if value.is_floating_point():
            first, second, third = (state[name] for state in states)
            expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
            torch.testing.assert_close(value, expected, msg=name)


def test_the_averaged_network_is_the_one_that_is_saved(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "epochs": 2, "batch_size": 10}
    averaged = train_teacher(TeacherConfig.load(**settings, ema=0.5, out=tmp_path / "averaged"))
    last = train_teacher(TeacherConfig.load(**settings, out=tmp_path / "last"))
    weights = [load_file(run.path / "model.safetensors") for run in (averaged, last)]
    assert any(not value.equal(weights[1][name]) for name, value in weights[0].items())
    assert averaged.read_metrics()[-1].train_loss == last.read_metrics()[-1].train_loss
    assert averaged.read_metrics()[-1].test_loss != last.read_metrics()[-1].test_loss


def test_a_network_without_a_known_head_is_not_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "head_of", lambda *_: {})  # as of a network of a fixed number of classes
    with pytest.raises(UsageError, match="--freeze-epochs: expected 0 for a network of a fixed number of classes"):
        Update(TeacherConfig(init="run", freeze_epochs=2), CPU, models.build("resnet8", num_classes=4, seed=0))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_the_head_is_trained_in_frozen_epochs(optimizer: str) -> None:
    network = models.build("resnet8", num_classes=4, seed=0)
    config = TeacherConfig(optimizer=optimizer, lr=0.1, init="run", freeze_epochs=2, clip_grad=100)
    update, states = Update(config, CPU, network), [copy.deepcopy(network.body.state_dict())]
    for epoch in (1, 2):
        update.begin_step(epoch, 0, 1)
        trained(update, network, steps=2)
        states.append(copy.deepcopy(network.body.state_dict()))
    parameters = {name for name, _ in network.body.named_parameters()}
    changed = [
        {name for name in parameters if not before[name].equal(after[name])} for before, after in pairwise(states)
    ]
    assert changed == [{"fc.weight", "fc.bias"}, parameters]


def test_a_run_with_a_cosine_is_not_resumed_for_other_epochs(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "schedule": "cosine", "epochs": 2, "out": tmp_path / "run"}
    config = TeacherConfig.load(**settings)
    with RunWriter(config, Compute(torch.device("cpu"), "float32"), load_data(config)):
        pass  # as if it had been killed
    with pytest.raises(UsageError, match="--epochs: expected 2, as in the run, got 4"):
        train_teacher(TeacherConfig.load(**{**settings, "epochs": 4, "resume": True}))


def test_smoothed_and_weighted_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2])
    weights = balanced_class_weights(labels, 4)
    assert weights.tolist() == pytest.approx([6 / 9, 1, 2, 0])
    weights = weights[:3].double()
    log_q = logits.log_softmax(1)
    targets = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), -(targets * log_q).sum(1).mean())
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1, weights), -(targets * weights * log_q).sum(1).mean())
    partners, lam = labels.flip(0), torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 0.0], dtype=torch.float64)
    other = 0.9 * nn.functional.one_hot(partners, 3) + 0.1 / 3
    mixed = lam[:, None] * targets + (1 - lam[:, None]) * other
    torch.testing.assert_close(
        mixed_cross_entropy(logits, labels, partners, lam, 0.1, weights), -(mixed * weights * log_q).sum(1).mean()
    )


@pytest.fixture(scope="module")
def uneven(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder dataset of three classes with 30, 20 and 10 training images."""
    root = tmp_path_factory.mktemp("uneven") / "pictures"
    shutil.copytree(pictures, root)
    for number, name in enumerate(sorted(path.name for path in (root / "train").iterdir())):
        for file in sorted((root / "train" / name).iterdir())[: 10 * number]:
            file.unlink()
    return root


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_the_loss_of_both_stages_has_smoothed_and_weighted_labels(stage: str, uneven: Path, tmp_path: Path) -> None:
    one_step = {**small_settings(uneven), "batch_size": 60, "out": tmp_path / "run"}
    labels = {"label_smoothing": 0.2, "class_weights": "balanced"}
    config: TrainingConfig
    if stage == "teacher":
        config = TeacherConfig.load(**one_step, **labels)
        run = train_teacher(config)
    else:
        config = StudentConfig.load(**one_step, **labels, loss="ce:0.7")
        run = train_student(config)
    data = load_data(config)
    plan = ViewPlan(len(data.train), data.image_size, data.card.padding, crop_flip=True, seed=config.seed)
    (batch,) = Views(data.train, plan, config.batch_size, torch.device("cpu")).epoch(0)
    log_q = fresh_network(config, data)(batch.views).log_softmax(1)
    weights = torch.tensor([60 / (3 * 30), 60 / (3 * 20), 60 / (3 * 10)])
    targets = 0.8 * nn.functional.one_hot(batch.labels, 3) + 0.2 / 3
    expected = -(targets * weights * log_q).sum(1).mean() * (0.7 if stage == "student" else 1)
    assert run.read_metrics()[0].train_loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine", "gamma": 0.2}, "--gamma: expected no value with --schedule cosine, got 0.2"),
        ({"min_lr": 0.01}, "--min-lr: expected no value with --schedule steps"),
        ({"schedule": "cosine", "min_lr": 0.2, "lr": 0.1}, "--min-lr: expected at most --lr 0.1, got 0.2"),
        (
            {"optimizer": "adamw", "nesterov": True},
            "--nesterov: expected false with --optimizer adamw, got True. Give --no-nesterov",
        ),
        ({"teacher_best": True, "loss": "ce"}, "--teacher-best: expected false with --loss ce, which has no teacher"),
        ({"freeze_epochs": 2}, "--freeze-epochs: expected 0 without --init"),
        ({"freeze_epochs": 9, "init": "run", "epochs": 8}, "--freeze-epochs: expected at most the 8 epochs"),
        ({"epochs": 5, "warmup_epochs": 5}, "--warmup-epochs: expected less than the 5 epochs, got 5"),
        ({"clip_grad": math.inf}, "--clip-grad: expected .*finite"),
        ({"optimizer": "adamw"}, "--lr: expected a rate for adamw, since 0.05 is that of sgd, got none"),
        ({"optimizer": "adam"}, "--optimizer: expected one of sgd, adamw, got adam"),
        ({"label_smoothing": 0.1, "loss": "mlkd", "aug": "randaugment"}, "--loss: expected a sum with ce, because of"),
        ({"label_smoothing": 0.1, "alpha": 1.0}, "--alpha: expected less than 1 with --label-smoothing"),
        (
            {"class_weights": "balanced", "loss": "ce:0+kd"},
            "--loss: expected a sum with ce, because of --class-weights",
        ),
    ],
)
def test_settings_without_effect_are_refused(settings: Settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StudentConfig.load(**settings)


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_the_best_network_is_kept_beside_the_last(held_out: float, small: Settings, tmp_path: Path) -> None:
    settings = {**small, "epochs": 6, "batch_size": 10, "lr": 0.2, "val_fraction": held_out, "out": tmp_path / "run"}
    config = TeacherConfig.load(**settings)
    run = train_teacher(config)
    scores = [line.val_top1 if held_out else line.test_top1 for line in run.read_metrics()]
    assert scores.index(max(scores)) + 1 == run.summary["best_epoch"] < 6  # type: ignore[type-var]
    assert checkpoint.metadata(run.best_network_file)["epoch"] == run.summary["best_epoch"]
    test, cpu = load_data(config).test, Compute(torch.device("cpu"), "float32")
    for file, top1 in ((run.chosen_network_file(True), "best_top1"), (run.chosen_network_file(False), "last_top1")):
        assert evaluate(checkpoint.load(file), test, cpu).top1 == run.summary[top1]
    if not held_out:
        check_students_of_the_best_network(run, {**small, "teacher": run.path, "cache": "replay"}, tmp_path)
    run.best_network_file.unlink()
    with pytest.raises(UsageError, match=r"best\.safetensors: expected a file, got none"):
        run.chosen_network_file(True)


def check_students_of_the_best_network(run: FinishedRun, settings: Settings, folder: Path) -> None:
    best, last = (checkpoint.fingerprint(checkpoint.load(run.chosen_network_file(best))) for best in (True, False))
    for teacher_best, taught_by in ((True, best), (False, last)):
        store = str(folder / f"{teacher_best}.zarr")
        chosen = {**settings, "teacher_best": teacher_best, "out": folder / f"best-{teacher_best}", "store": store}
        student = train_student(StudentConfig.load(**chosen))
        assert student.summary["teacher_forwards"] > 0
        assert student.read_environment()["origin"]["teacher"] == taught_by
        assert load_analysis_inputs(str(student.path)).teacher.fingerprint == taught_by
        assert all(check.max_error < 0.1 for check in verify_store(run, AnswerStore(store), samples=3))
    assert load_analysis_inputs(str(run.path), best=True).name == f"{run.path} (epoch {run.summary['best_epoch']})"


def test_a_training_stops_when_its_patience_is_lost(
    small: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdcache")
    still = {**small, "epochs": 9, "lr": 1e-12, "evaluate_every": 2, "patience": 2, "out": tmp_path / "run"}
    run = train_teacher(TeacherConfig.load(**still))
    assert [line.epoch for line in run.read_metrics()] == [1, 2, 3, 4, 5, 6]  # evaluated after 2, 4 and 6
    assert (run.summary["epochs"], run.summary["best_epoch"]) == (6, 2)
    assert "stopped after epoch 6: 2 evaluations without a better one" in caplog.text


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_run_without_patience_left_is_not_trained_further(small: Settings, teacher: Path, tmp_path: Path) -> None:
    settings = {**small, "teacher": teacher, "cache": "off", "epochs": 9, "lr": 1e-12, "patience": 2}
    settings |= {"aug": "cutmix", "out": tmp_path / "run"}
    whole = train_student(StudentConfig.load(**settings))
    out = tmp_path / "killed"
    killed = {**settings, "out": out, "checkpoint_minutes": 1e-6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_student(StudentConfig.load(**killed))
    resumed = train_student(StudentConfig.load(**killed, resume=True))
    assert resumed.summary["epochs"] == whole.summary["epochs"] < 9
    assert outcome(resumed.path) == outcome(whole.path)
