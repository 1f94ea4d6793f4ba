"""One step of the student: what is asked, scored, picked, recorded and left alone."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages.student import Step, make_objective
from torch import Tensor

from kdcache import models, training
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.teacher import FORWARD_ROWS, Teacher
from kdcache.choices import AUGMENTATIONS, CRITERIA, MIXES
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.losses import PARTS, cross_entropy, kd, kld
from kdcache.losses.crd import ContrastMemory
from kdcache.training import FrozenRunningStats
from kdcache.views import Batch, Plan, ViewMaker
from tests import answers

CPU = Compute(torch.device("cpu"), "float32")
SIZE = 32


class Bench:
    """A student, a teacher and the first batch of a setting, with the rows that reach the teacher counted."""

    def __init__(self, data: Split, compute: Compute = CPU, **settings: Any) -> None:
        config = StudentConfig(epochs=1, batch_size=SIZE, **settings)
        aug = config.augmentation
        plan = Plan(len(data), 32, 4, crop_flip=aug.crop_flip, seed=3, mixes=aug.mixes)
        self.maker = ViewMaker(data, plan, SIZE, compute.device)
        self.batch: Batch = next(self.maker.epoch(0))
        self.student = models.build("resnet8", num_classes=4, seed=0).to(compute.device)
        self.teacher = models.build("resnet8", num_classes=4, seed=1)
        self.rows: list[Tensor] = []
        self.teacher.body.register_forward_pre_hook(lambda _, given: self.rows.append(given[0].clone()))
        cached_teacher = CachedTeacher(Teacher(self.teacher, compute), self.maker) if config.needs_teacher else None
        objective = make_objective(config, self.student, cached_teacher, answers.dataset(data)).to(compute.device)
        self.step = Step(config, self.student, objective, cached_teacher, compute)
        self.step.begin(answers.statistics(self.maker, self.step.losses))

    def logits(self, network: models.Network, rows: Tensor) -> Tensor:
        """Logits of some views of the batch, in training mode for the student, leaving it as it was."""
        network = copy.deepcopy(network)
        with torch.no_grad():
            return network(self.batch.views[rows])


def norm_state(network: models.Network) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items() if "running" in key or "tracked" in key}


def test_scoring_leaves_the_running_statistics_alone(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    before = norm_state(bench.student)
    answers = bench.step.cached_teacher.ask(bench.batch) if bench.step.cached_teacher else None
    bench.step._pick(bench.batch, answers)
    assert all(value.equal(before[key]) for key, value in norm_state(bench.student).items())
    bench.step(bench.batch)
    after = norm_state(bench.student)
    assert all(value == 1 for key, value in after.items() if "tracked" in key)  # one forward of training, not two
    assert any(not value.equal(before[key]) for key, value in after.items() if "running" in key)


def test_scoring_normalises_by_the_batch(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    rows = torch.arange(SIZE, 3 * SIZE)
    expected = bench.logits(bench.student, rows)
    with FrozenRunningStats(bench.student), torch.no_grad():
        assert bench.student(bench.batch.views[rows]).equal(expected)
    assert not bench.logits(copy.deepcopy(bench.student).eval(), rows).equal(expected)


@pytest.fixture
def without_content(monkeypatch: pytest.MonkeyPatch) -> Compute:
    """A device whose tensors have no content: where a GPU would make the host wait for a value, they raise an error."""
    monkeypatch.setitem(FORWARD_ROWS, "meta", 64)
    monkeypatch.setattr(Compute, "autocast", lambda compute: nullcontext())
    return Compute(torch.device("meta"), "float32")


def steps_before_a_look(bench: Bench, compute: Compute) -> int:
    taken = []

    def step(batch: Batch) -> Tensor:
        loss = bench.step(batch)
        taken.append(batch.step)
        return loss

    optimiser = torch.optim.SGD(bench.student.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="meta"):
        next(training.train_epoch(optimiser, bench.maker.epoch(0), step, compute))
    return len(taken)


@pytest.mark.parametrize(
    ("loss", "aug"),
    [("ce", "standard"), ("kd", "none"), ("kd", "mixup"), *((f"{name}+kd", "cutmix-pick") for name in PARTS)],
)
def test_steps_wait_for_their_device_no_more_than_once_in_a_while(
    loss: str, aug: str, noise: Split, without_content: Compute
) -> None:
    bench = Bench(noise, without_content, aug=aug, loss=loss)
    for module in bench.step.objective.modules():
        if isinstance(module, ContrastMemory):
            module._normalised = True  # which is looked at once in a training
    assert steps_before_a_look(bench, without_content) == len(bench.maker.steps) < training.LOSS_CHECK_STEPS


def test_nor_do_steps_on_stored_answers(noise: Split, without_content: Compute, tmp_path: Path) -> None:
    bench = Bench(noise, without_content, aug="cutmix-pick")
    maker = ViewMaker(noise, bench.maker.plan, SIZE, CPU.device)
    list(answers.cached_teacher(tmp_path / "store", noise, maker).fill(1))
    bench.step.cached_teacher = answers.cached_teacher(tmp_path / "store", noise, bench.maker)
    assert steps_before_a_look(bench, without_content) == len(maker.steps)
    assert bench.step.cached_teacher.count() == (0, 3 * len(noise))


@pytest.mark.parametrize(("aug", "views"), [("standard", 1), ("mixup", 2), ("cutmix", 2), ("cutmix-pick", 3)])
def test_each_view_goes_to_the_teacher_once(aug: str, views: int, noise: Split) -> None:
    bench = Bench(noise, aug=aug)
    bench.step(bench.batch)
    asked = torch.cat(bench.rows)[: views * SIZE]  # the last forward is padded
    assert sum(len(rows) for rows in bench.rows) == 64 * -(-views * SIZE // 64)
    assert asked.equal(bench.teacher.normalize(bench.batch.views))


def test_without_need_the_teacher_is_not_asked(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix", loss="ce")
    bench.step(bench.batch)
    assert bench.rows == []


def test_the_picks_are_the_largest_d_of_the_pool_and_r_is_equation_3(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    candidates = torch.arange(SIZE, 3 * SIZE)
    teacher = bench.logits(bench.teacher.eval(), candidates).half().float()
    d = kld(teacher, bench.logits(bench.student, candidates), 4.0)
    bench.step(bench.batch)
    statistics, samples = bench.step.statistics, bench.batch.samples
    torch.testing.assert_close(statistics.d_mixed[:, samples].flatten(), d)
    picked = statistics.picked[:, samples].flatten()
    assert picked.sum() == SIZE
    assert d[picked].min() >= d[~picked].max()
    torch.testing.assert_close(statistics.kl_ratio[0], d[picked].mean() / d.mean())
    assert statistics.kl_ratio[0] > 1
    others = torch.ones(len(noise), dtype=torch.bool)
    others[samples] = False
    assert statistics.d_x[others].isnan().all()


def test_d_and_disputed_labels_without_picking(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix")
    logits = bench.logits(bench.student, torch.arange(2 * SIZE))
    teacher = bench.logits(bench.teacher.eval(), torch.arange(2 * SIZE)).half().float()
    bench.step(bench.batch)
    statistics, batch = bench.step.statistics, bench.batch
    d = kld(teacher, logits, 4.0)
    torch.testing.assert_close(statistics.d_x[batch.samples], d[:SIZE])
    torch.testing.assert_close(statistics.d_mixed[0, batch.samples], d[SIZE:])
    assert statistics.kl_ratio.isnan().all()
    labels = torch.where(batch.lam > 0.5, batch.labels, batch.partner_labels)  # this batch has no ties
    assert not (batch.lam == 0.5).any()
    assert statistics.disagreements[0] == (teacher[SIZE:].argmax(1) != labels).sum()


@pytest.mark.parametrize("pick", ["teacher-entropy", "random"])
def test_d_is_known_of_the_picks_alone_where_nothing_is_scored(pick: str, noise: Split) -> None:
    bench = Bench(noise, aug="cutmix", pick=pick)
    bench.step(bench.batch)
    statistics, samples = bench.step.statistics, bench.batch.samples
    assert statistics.picked[:, samples].sum() == SIZE
    assert statistics.d_mixed[:, samples].isfinite().equal(statistics.picked[:, samples])
    assert statistics.kl_ratio.isnan().all()


@pytest.mark.parametrize("aug", ["cutmix", "cutmix-pick"])
def test_the_loss_is_the_papers(aug: str, noise: Split) -> None:
    bench = Bench(noise, aug=aug, alpha=0.7, temperature=3.0)
    loss = bench.step(bench.batch)
    picked = bench.step.statistics.picked[:, bench.batch.samples].flatten().nonzero()[:, 0]
    rows = torch.cat([torch.arange(SIZE), SIZE + picked])
    logits, teacher = bench.logits(bench.student, rows), bench.logits(bench.teacher.eval(), rows).half().float()
    x, mixed = slice(0, SIZE), slice(SIZE, None)
    expected = (
        0.3 * cross_entropy(logits[x], bench.batch.labels)
        + 0.7 * kd(kld(teacher[x], logits[x], 3.0), 3.0)
        + 0.7 * kd(kld(teacher[mixed], logits[mixed], 3.0), 3.0)
    )
    torch.testing.assert_close(loss, expected)


def test_cross_entropy_with_mixing_trains_on_the_mixed_views_alone(noise: Split) -> None:
    bench = Bench(noise, aug="mixup", loss="ce")
    logits = bench.logits(bench.student, torch.arange(SIZE, 2 * SIZE))
    batch = bench.batch
    soft = torch.zeros(SIZE, 4)
    soft[torch.arange(SIZE), batch.labels] += batch.lam
    soft[torch.arange(SIZE), batch.partner_labels] += 1 - batch.lam
    expected = torch.nn.functional.cross_entropy(logits, soft)
    torch.testing.assert_close(bench.step(batch), expected)
    assert bench.step.statistics.d_x.isnan().all()
    assert bench.step.statistics.d_mixed.isnan().all()


def test_every_parameter_of_the_student_gets_a_gradient_under_autocast(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    bench.step.compute = Compute(torch.device("cpu"), "bfloat16")
    bench.step(bench.batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bench.student.parameters())
    assert all(p.grad is None for p in bench.teacher.parameters())


def combinations() -> list[dict[str, str]]:
    """Every augmentation with every criterion and loss, but those that a config refuses."""
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
def test_what_a_step_asks_picks_and_knows(settings: dict[str, str], noise: Split) -> None:
    bench = Bench(noise, **settings)
    aug = StudentConfig(**settings).augmentation
    loss = bench.step(bench.batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bench.student.parameters())
    taught = settings["loss"] != "ce"
    asked = sum(len(rows) for rows in bench.rows)
    assert asked == (64 * -(-(1 + len(aug.mixes)) * SIZE // 64) if taught else 0)

    statistics, samples = bench.step.statistics, bench.batch.samples
    d, picked = statistics.d_mixed[:, samples], statistics.picked[:, samples]
    assert picked.sum() == (len(aug.mixes) * SIZE // 2 if aug.pick else len(aug.mixes) * SIZE)
    assert statistics.picked.sum() == picked.sum()
    assert statistics.d_x[samples].isfinite().all() == taught
    scored = taught and aug.pick is not None and CRITERIA[aug.pick].student
    assert d.isfinite().equal(torch.ones_like(picked) if scored else picked if taught else torch.zeros_like(picked))
    assert statistics.kl_ratio[0].isfinite() == scored
    assert statistics.disagreements[0].isfinite() == (taught and aug.mixes != ())


@pytest.mark.parametrize(("candidates", "keep", "picks"), [(3, 0.5, 48), (4, 0.25, 32), (2, 1.0, 64), (1, 0.01, 2)])
def test_a_share_of_the_candidates_of_the_whole_step_is_picked(
    candidates: int, keep: float, picks: int, noise: Split
) -> None:
    bench = Bench(noise, aug="trivialaugment", pick="kld", candidates=candidates, keep=keep)
    bench.step(bench.batch)
    statistics = bench.step.statistics
    d, picked = statistics.d_mixed[:, bench.batch.samples], statistics.picked[:, bench.batch.samples]
    assert picked.shape == (candidates, SIZE)
    assert picked.sum() == picks
    if picks < candidates * SIZE:
        assert d[picked].min() >= d[~picked].max()


def test_clean_views_are_answered_from_the_store_without_a_forward(noise: Split, tmp_path: Path) -> None:
    live, stored = Bench(noise, aug="none"), Bench(noise, aug="none")
    assert stored.step.cached_teacher is not None
    store = answers.store(tmp_path / "answers.zarr", stored.step.cached_teacher.teacher, noise)
    stored.step.cached_teacher = CachedTeacher.with_store(
        stored.step.cached_teacher.teacher, stored.maker, store, "clean", epochs=1
    )
    stored.rows.clear()
    assert stored.step(stored.batch).equal(live.step(live.batch))
    assert stored.rows == []
    assert len(live.rows) == 1


def test_running_statistics_follow_one_forward_of_x_and_the_picks(noise: Split) -> None:
    bench = Bench(noise, aug="cutmix-pick")
    alone = copy.deepcopy(bench.student)
    bench.step(bench.batch)
    picked = bench.step.statistics.picked[:, bench.batch.samples].flatten()
    rows = torch.cat([torch.arange(SIZE), SIZE + picked.nonzero().flatten()])
    with torch.no_grad():
        alone(bench.batch.views[rows])
    assert all(value.equal(norm_state(alone)[key]) for key, value in norm_state(bench.student).items())


def test_statistics_run_on_after_scoring_that_fails(noise: Split) -> None:
    student = models.build("resnet8", num_classes=4, seed=0)
    before = norm_state(student)
    with pytest.raises(RuntimeError, match="scoring"), FrozenRunningStats(student):
        raise RuntimeError("scoring")
    student(noise.images[:8])
    assert not any(value.equal(before[key]) for key, value in norm_state(student).items())


@pytest.mark.parametrize("pick", ["teacher-entropy", "student-entropy", "random"])
def test_the_other_criteria_keep_the_largest_of_their_own_score(pick: str, noise: Split) -> None:
    bench = Bench(noise, aug="cutmix", pick=pick)
    candidates = torch.arange(SIZE, 3 * SIZE)
    network = bench.teacher.eval() if pick == "teacher-entropy" else bench.student
    logits = bench.logits(network, candidates)
    logits = logits.half().float() if pick == "teacher-entropy" else logits
    score = bench.batch.random_score if pick == "random" else torch.distributions.Categorical(logits=logits).entropy()
    bench.step(bench.batch)
    picked = bench.step.statistics.picked[:, bench.batch.samples].flatten()
    assert score[picked].min() >= score[~picked].max() - 1e-6
    assert score[picked].mean() > score[~picked].mean()
