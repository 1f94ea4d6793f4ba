"""One training step of the student: teacher forwards, scores, picks, losses, records, and what it must not change."""

import copy
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages.student import StudentStep
from torch import Tensor

from kdcache import models, training
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.open import make_cached_teacher
from kdcache.answers.teacher import FORWARD_BATCH_SIZE, Teacher
from kdcache.choices import AUGMENTATIONS, CRITERIA, LOSSES, MIXES
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.forwards import FrozenRunningStats, WithFeatures
from kdcache.losses import build_objective, cross_entropy, kd_loss, kl_divergence
from kdcache.optimization import Update
from kdcache.run.checkpoint import TrainingState
from kdcache.run.statistics import EpochStatistics
from kdcache.stores import encoding_of
from kdcache.views import Batch, ViewPlan, Views
from tests import answers
from tests.stubs import stub

CPU = Compute(torch.device("cpu"), "float32")
SIZE = 32

TERMS = [name for name in LOSSES if name not in ("ce", "kd")]


def mixing_aug(name: str) -> str:
    """An --aug that makes x' which a loss takes, also beside kd."""
    return "randaugment" if LOSSES[name].acts_on == "pairs" else "cutmix-pick"


class Bench:
    """A student, a teacher and the first batch of a setting, recording the rows that reach the teacher.

    Both networks are built from a seed each, by default as ResNet8. Steps have a learning rate of 0: gradients and
    statistics tell what they do, and the weights stay.
    """

    def __init__(
        self, data: Split, compute: Compute = CPU, build: Callable[..., models.Network] | None = None, **settings: Any
    ) -> None:
        build = build or partial(models.build, "resnet8", num_classes=4)
        config = StudentConfig(epochs=1, batch_size=SIZE, **settings)
        aug = config.augmentation
        plan = ViewPlan(len(data), 32, 4, crop_flip=aug.crop_flip, seed=3, mixes=aug.mixes)
        self.maker = Views(data, plan, SIZE, compute.device)
        self.batch: Batch = next(self.maker.epoch(0))
        self.student = build(seed=0).to(compute.device)
        self.teacher = build(seed=1)
        self.rows: list[Tensor] = []
        self.teacher.body.register_forward_pre_hook(lambda _, given: self.rows.append(given[0].clone()))
        teacher = None
        if config.needs_teacher:
            encoding = encoding_of(config, self.teacher)
            teacher = CachedTeacher(Teacher(self.teacher, compute), self.maker, encoding=encoding)
        objective = build_objective(config, self.student, self.teacher if teacher else None, data.labels)
        objective = objective.to(compute.device)
        update = Update(config, compute, self.student, objective)
        # The fused optimizer does not know the meta device.
        update.optimizer = torch.optim.SGD(torch.nn.ModuleList([self.student, objective]).parameters(), lr=0.0)
        self.folder = tempfile.TemporaryDirectory()
        self.recorder = answers.recorder(Path(self.folder.name) / "statistics", self.maker, objective.names, teacher)
        self.recorder.begin_epoch(TrainingState())
        self.step = StudentStep(config, WithFeatures(self.student), teacher, objective, update, compute, self.recorder)

    @property
    def statistics(self) -> EpochStatistics:
        return self.recorder.statistics

    def logits(self, network: models.Network, rows: Tensor) -> Tensor:
        """Logits of some views of the batch, in training mode for the student, leaving it as it was."""
        network = copy.deepcopy(network)
        with torch.no_grad():
            return network(self.batch.views[rows])


def norm_state(network: models.Network) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items() if "running" in key or "tracked" in key}


def test_scoring_does_not_update_running_statistics(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    before = norm_state(bench.student)
    assert bench.step.teacher is not None
    logits = bench.step.teacher.logits(bench.batch)
    bench.step._candidates(bench.batch, logits)
    assert all(value.equal(before[key]) for key, value in norm_state(bench.student).items())
    bench.step(bench.batch)
    after = norm_state(bench.student)
    assert all(value == 1 for key, value in after.items() if "tracked" in key)  # one forward of training, not two
    assert any(not value.equal(before[key]) for key, value in after.items() if "running" in key)


def test_scoring_uses_batch_statistics(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    rows = torch.arange(SIZE, 3 * SIZE)
    expected = bench.logits(bench.student, rows)
    with FrozenRunningStats(bench.student), torch.no_grad():
        assert bench.student(bench.batch.views[rows]).equal(expected)
    assert not bench.logits(copy.deepcopy(bench.student).eval(), rows).equal(expected)


@pytest.fixture
def meta_device(monkeypatch: pytest.MonkeyPatch) -> Compute:
    """The meta device: reading a value from its tensors, for which a GPU would make the host wait, is an error."""
    monkeypatch.setitem(FORWARD_BATCH_SIZE, "meta", 64)
    monkeypatch.setattr(Compute, "autocast", lambda compute: nullcontext())
    return Compute(torch.device("meta"), "float32")


def steps_before_a_value_is_read(bench: Bench, compute: Compute) -> int:
    taken = []

    def step(batch: Batch) -> training.StepResult:
        result = bench.step(batch)
        taken.append(batch.step)
        return result

    with pytest.raises(RuntimeError, match="meta"):
        next(training.train_epoch(bench.maker.epoch(0), step, compute))
    return len(taken)


@pytest.mark.parametrize(
    ("loss", "aug"),
    [
        ("ce", "standard"),
        ("kd", "none"),
        ("kd", "mixup"),
        ("kd", "randaugment+erasing"),
        ("crd+kd", "cutmix-pick"),  # tests/test_fake_cuda.py has each loss
    ],
)
def test_steps_do_not_wait_for_the_device(loss: str, aug: str, noise: Split, meta_device: Compute) -> None:
    bench = Bench(noise, meta_device, stub, aug=aug, loss=loss)
    assert steps_before_a_value_is_read(bench, meta_device) == len(bench.maker.steps) < training.LOSS_CHECK_STEPS


def test_steps_on_stored_logits_do_not_wait_for_the_device(noise: Split, meta_device: Compute, tmp_path: Path) -> None:
    bench = Bench(noise, meta_device, aug="cutmix-pick")
    maker = Views(noise, bench.maker.plan, SIZE, CPU.device)
    list(answers.cached_teacher(tmp_path / "store", noise, maker).precompute(1))
    bench.step.teacher = answers.cached_teacher(tmp_path / "store", noise, bench.maker)
    assert steps_before_a_value_is_read(bench, meta_device) == len(maker.steps)
    assert bench.step.teacher.pop_counts() == (0, 3 * len(noise))


@pytest.mark.parametrize(("aug", "views"), [("standard", 1), ("mixup", 2), ("cutmix", 2), ("cutmix-pick", 3)])
def test_each_view_goes_through_the_teacher_once(aug: str, views: int, noise: Split) -> None:
    bench = Bench(noise, aug=aug)
    bench.step(bench.batch)
    forwarded = torch.cat(bench.rows)[: views * SIZE]  # the last forward is padded
    assert sum(len(rows) for rows in bench.rows) == 64 * -(-views * SIZE // 64)
    assert forwarded.equal(bench.teacher.normalize(bench.batch.views))


def test_a_run_that_needs_no_teacher_has_no_teacher_forwards(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix", loss="ce")
    bench.step(bench.batch)
    assert bench.rows == []


def test_picks_have_the_largest_d_and_r_is_equation_3(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    candidates = torch.arange(SIZE, 3 * SIZE)
    teacher = bench.logits(bench.teacher.eval(), candidates).half().float()
    d = kl_divergence(bench.logits(bench.student, candidates), teacher, 4.0)
    bench.step(bench.batch)
    statistics, samples = bench.statistics, bench.batch.samples
    torch.testing.assert_close(statistics.d_mixed[:, samples].flatten(), d)
    picked = statistics.picked[:, samples].flatten()
    assert picked.sum() == SIZE
    assert d[picked].min() >= d[~picked].max()
    torch.testing.assert_close(statistics.kl_ratio[0], d[picked].mean() / d.mean())
    assert statistics.kl_ratio[0] > 1
    others = torch.ones(len(noise), dtype=torch.bool)
    others[samples] = False
    assert statistics.d_x[others].isnan().all()


def test_d_and_label_disagreement_without_picking(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix")
    logits = bench.logits(bench.student, torch.arange(2 * SIZE))
    teacher = bench.logits(bench.teacher.eval(), torch.arange(2 * SIZE)).half().float()
    bench.step(bench.batch)
    statistics, batch = bench.statistics, bench.batch
    d = kl_divergence(logits, teacher, 4.0)
    torch.testing.assert_close(statistics.d_x[batch.samples], d[:SIZE])
    torch.testing.assert_close(statistics.d_mixed[0, batch.samples], d[SIZE:])
    assert statistics.kl_ratio.isnan().all()
    labels = torch.where(batch.lam > 0.5, batch.labels, batch.partner_labels)  # this batch has no ties
    assert not (batch.lam == 0.5).any()
    assert statistics.disagreements[0] == (teacher[SIZE:].argmax(1) != labels).sum()


def test_label_disagreement_is_a_share_of_the_mixed_views(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    disagreeing = 0
    for batch in bench.maker.epoch(0):
        bench.step(batch)
        logits = bench.step.teacher.logits(batch)[len(batch) :]  # type: ignore[union-attr]
        disagreeing += int((logits.argmax(1) != batch.mixed_labels()).sum())
    assert bench.statistics.label_disagreement() == pytest.approx(disagreeing / (2 * len(noise)))
    assert 0 < disagreeing < 2 * len(noise)


@pytest.mark.parametrize("pick", ["teacher-entropy", "random"])
def test_d_is_recorded_for_picks_alone_without_scoring(pick: str, noise: Split) -> None:
    bench = Bench(noise, aug="cutmix", pick=pick)
    bench.step(bench.batch)
    statistics, samples = bench.statistics, bench.batch.samples
    assert statistics.picked[:, samples].sum() == SIZE
    assert statistics.d_mixed[:, samples].isfinite().equal(statistics.picked[:, samples])
    assert statistics.kl_ratio.isnan().all()


@pytest.mark.parametrize("aug", ["cutmix", "cutmix-pick"])
def test_the_loss_is_that_of_the_paper(aug: str, noise: Split) -> None:
    bench = Bench(noise, aug=aug, alpha=0.7, temperature=3.0)
    result = bench.step(bench.batch)
    picked = bench.statistics.picked[:, bench.batch.samples].flatten().nonzero()[:, 0]
    rows = torch.cat([torch.arange(SIZE), SIZE + picked])
    logits, teacher = bench.logits(bench.student, rows), bench.logits(bench.teacher.eval(), rows).half().float()
    x, mixed = slice(0, SIZE), slice(SIZE, None)
    expected = (
        0.3 * cross_entropy(logits[x], bench.batch.labels)
        + 0.7 * kd_loss(logits[x], teacher[x], 3.0)
        + 0.7 * kd_loss(logits[mixed], teacher[mixed], 3.0)
    )
    torch.testing.assert_close(result.loss, expected)
    assert (result.correct, result.labelled) == ((logits[x].argmax(1) == bench.batch.labels).sum(), SIZE)


def test_cross_entropy_with_mixing_trains_on_mixed_views_alone(noise: Split) -> None:
    bench = Bench(noise, aug="mixup", loss="ce")
    logits = bench.logits(bench.student, torch.arange(SIZE, 2 * SIZE))
    batch = bench.batch
    soft = torch.zeros(SIZE, 4)
    soft[torch.arange(SIZE), batch.labels] += batch.lam
    soft[torch.arange(SIZE), batch.partner_labels] += 1 - batch.lam
    expected = torch.nn.functional.cross_entropy(logits, soft)
    result = bench.step(batch)
    torch.testing.assert_close(result.loss, expected)
    assert (result.correct, result.labelled) == ((logits.argmax(1) == batch.mixed_labels()).sum(), SIZE)
    assert bench.statistics.d_x.isnan().all()
    assert bench.statistics.d_mixed.isnan().all()


def test_every_parameter_of_the_student_gets_a_gradient_under_autocast(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    bench.step.compute = Compute(torch.device("cpu"), "bfloat16")
    bench.step(bench.batch)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bench.student.parameters())
    assert all(p.grad is None for p in bench.teacher.parameters())


def combinations() -> list[dict[str, str]]:
    """Every augmentation with every criterion and loss that a config accepts."""
    found = []
    for loss in ("ce", "kd", "dkd"):
        for aug in (*AUGMENTATIONS, *MIXES, "cutmix+mixup"):
            mixes = bool(StudentConfig(aug=aug).augmentation.mixes)
            for pick in (None, *CRITERIA) if mixes and aug not in ("autoaugment", "cutout") else (None,):
                criterion = pick or StudentConfig(aug=aug).augmentation.pick
                if loss != "ce" or criterion is None or not CRITERIA[criterion].teacher:
                    found.append({"loss": loss, "aug": aug} | ({"pick": pick} if pick else {}))
    return found


@pytest.mark.parametrize("settings", combinations(), ids=lambda settings: "-".join(settings.values()))
def test_teacher_forwards_picks_and_records_of_a_step(settings: dict[str, str], noise: Split) -> None:
    bench = Bench(noise, build=stub, **settings)
    aug = StudentConfig(**settings).augmentation
    bench.step(bench.batch)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bench.student.parameters())
    has_teacher = settings["loss"] != "ce"
    forwarded = sum(len(rows) for rows in bench.rows)
    assert forwarded == (64 * -(-(1 + len(aug.mixes)) * SIZE // 64) if has_teacher else 0)

    statistics, samples = bench.statistics, bench.batch.samples
    d, picked = statistics.d_mixed[:, samples], statistics.picked[:, samples]
    assert picked.sum() == (len(aug.mixes) * SIZE // 2 if aug.pick else len(aug.mixes) * SIZE)
    assert statistics.picked.sum() == picked.sum()
    assert statistics.d_x[samples].isfinite().all() == has_teacher
    scored = has_teacher and aug.pick is not None and CRITERIA[aug.pick].student
    assert d.isfinite().equal(
        torch.ones_like(picked) if scored else picked if has_teacher else torch.zeros_like(picked)
    )
    assert statistics.kl_ratio[0].isfinite() == scored
    assert statistics.disagreements[0].isfinite() == (has_teacher and aug.mixes != ())


@pytest.mark.parametrize(("candidates", "keep", "picks"), [(3, 0.5, 48), (4, 0.25, 32), (2, 1.0, 64), (1, 0.01, 2)])
def test_the_fraction_keep_of_all_candidates_is_picked(candidates: int, keep: float, picks: int, noise: Split) -> None:
    bench = Bench(noise, aug="trivialaugment", pick="kld", candidates=candidates, keep=keep)
    bench.step(bench.batch)
    statistics = bench.statistics
    d, picked = statistics.d_mixed[:, bench.batch.samples], statistics.picked[:, bench.batch.samples]
    assert picked.shape == (candidates, SIZE)
    assert picked.sum() == picks
    if picks < candidates * SIZE:
        assert d[picked].min() >= d[~picked].max()


def test_stored_clean_logits_need_no_forward(noise: Split, tmp_path: Path) -> None:
    live, stored = Bench(noise, aug="none"), Bench(noise, aug="none")
    assert stored.step.teacher is not None
    opened = answers.opened(tmp_path / "answers.zarr", stored.step.teacher.teacher, noise)
    stored.step.teacher = make_cached_teacher(opened, stored.maker, "clean", epochs=1)
    stored.rows.clear()
    assert stored.step(stored.batch) == live.step(live.batch)
    assert stored.rows == []
    assert len(live.rows) == 1


def test_running_statistics_are_those_of_one_forward_of_x_and_the_picks(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    alone = copy.deepcopy(bench.student)
    bench.step(bench.batch)
    picked = bench.statistics.picked[:, bench.batch.samples].flatten()
    rows = torch.cat([torch.arange(SIZE), SIZE + picked.nonzero().flatten()])
    with torch.no_grad():
        alone(bench.batch.views[rows])
    assert all(value.equal(norm_state(alone)[key]) for key, value in norm_state(bench.student).items())


def test_running_statistics_are_tracked_again_after_scoring_fails(noise: Split) -> None:
    student = models.build("resnet8", num_classes=4, seed=0)
    before = norm_state(student)
    with pytest.raises(RuntimeError, match="scoring"), FrozenRunningStats(student):
        raise RuntimeError("scoring")
    student(noise.images[:8])
    assert not any(value.equal(before[key]) for key, value in norm_state(student).items())


@pytest.mark.parametrize("pick", ["teacher-entropy", "student-entropy", "random"])
def test_other_criteria_pick_the_highest_of_their_scores(pick: str, noise: Split) -> None:
    bench = Bench(noise, aug="cutmix", pick=pick)
    candidates = torch.arange(SIZE, 3 * SIZE)
    network = bench.teacher.eval() if pick == "teacher-entropy" else bench.student
    logits = bench.logits(network, candidates)
    logits = logits.half().float() if pick == "teacher-entropy" else logits
    score = bench.batch.random_score if pick == "random" else torch.distributions.Categorical(logits=logits).entropy()
    bench.step(bench.batch)
    picked = bench.statistics.picked[:, bench.batch.samples].flatten()
    assert score[picked].min() >= score[~picked].max() - 1e-6
    assert score[picked].mean() > score[~picked].mean()
