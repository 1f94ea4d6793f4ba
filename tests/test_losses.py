"""Losses and pick criteria: golden figures, hand-worked cases, extremes; and the words that name them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache import datasets, models
from kdcache.choices import CRITERIA, DATASETS, LOSSES, MIXES, MODELS
from kdcache.losses import (
    PARTS,
    Mixed,
    Objective,
    Plain,
    cross_entropy,
    entropy,
    kd,
    kld,
    mixed_cross_entropy,
)
from kdcache.selection import SCORES, Candidates, best
from kdcache.views import mixes
from tests.figures import tensor

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())["results"]
STUDENT, TEACHER = tensor(0, (8, 100), 6), tensor(1, (8, 100), 8)


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd_is_golden(temperature: int) -> None:
    student = STUDENT.clone().requires_grad_()
    loss = kd(kld(TEACHER, student, temperature), temperature)
    loss.backward()
    expected = GOLDEN[f"kd_T{temperature}"]
    assert student.grad is not None
    assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(expected["grad_norm"], rel=1e-9)


def test_d_and_entropies_are_golden() -> None:
    assert kld(TEACHER, STUDENT, 4).tolist() == pytest.approx(GOLDEN["d_kld_T4"], rel=1e-9)
    assert entropy(TEACHER).tolist() == pytest.approx(GOLDEN["teacher_entropy_T1"], rel=1e-9)
    assert entropy(STUDENT).tolist() == pytest.approx(GOLDEN["student_entropy_T1"], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype=dtype)
    student = teacher.flip(0).clone().requires_grad_()
    loss = kd(kld(teacher, student, 4.0), 4.0) + entropy(student).sum() + cross_entropy(student, torch.tensor([0, 1]))
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert entropy(teacher).tolist() == [0, 0]


def test_arithmetic_is_float32_whatever_comes_in() -> None:
    halves = STUDENT.bfloat16(), TEACHER.half()
    assert kld(halves[1], halves[0], 4).dtype == torch.float32
    torch.testing.assert_close(kld(halves[1], halves[0], 4), kld(halves[1].float(), halves[0].float(), 4))
    assert entropy(halves[0]).dtype == torch.float32


def test_the_distillation_of_x_and_of_the_mixed_views_are_means_over_their_own_rows() -> None:
    labels = torch.arange(8)
    d, mixed_d = kld(TEACHER, STUDENT, 4), kld(TEACHER[:3], STUDENT[:3] * 2, 4)
    plain = Plain(STUDENT, TEACHER, d, labels, labels)
    mixed = Mixed(STUDENT[:3] * 2, mixed_d, labels[:3], labels[1:4], torch.ones(3))
    on_x = 0.1 * cross_entropy(STUDENT, labels) + 0.9 * 16 * d.mean()
    objective = Objective({"ce": 0.1, "kd": 0.9}, 4)
    torch.testing.assert_close(sum(objective(plain, None).values()), on_x)
    on_both = on_x + 0.9 * 16 * mixed_d.mean()
    torch.testing.assert_close(sum(objective(plain, mixed).values()), on_both)


def test_criteria_score_by_what_they_say() -> None:
    known = Candidates(TEACHER, STUDENT, kld(TEACHER, STUDENT, 4), torch.arange(8.0))
    scores: dict[str, Tensor] = {name: score(known) for name, score in SCORES.items()}
    assert scores["kld"].tolist() == pytest.approx(GOLDEN["d_kld_T4"])
    assert scores["teacher-entropy"].tolist() == pytest.approx(GOLDEN["teacher_entropy_T1"])
    assert scores["student-entropy"].tolist() == pytest.approx(GOLDEN["student_entropy_T1"])
    assert scores["random"].equal(torch.arange(8.0))


def test_the_best_of_the_whole_pool_are_picked_and_the_earlier_of_equals() -> None:
    assert best(torch.tensor([1.0, 5.0, 3.0, 5.0, 3.0, 0.0]), 3).tolist() == [1, 2, 3]
    assert best(torch.tensor([2.0, 2.0, 2.0, 2.0]), 2).tolist() == [0, 1]


def test_the_words_of_a_config_are_those_of_the_registries() -> None:
    assert set(LOSSES) == {"ce", "kd", *PARTS}
    assert set(CRITERIA) == set(SCORES)
    assert set(MIXES) == set(mixes.MIXES)
    assert models.names() == MODELS
    assert set(DATASETS) == set(datasets.CARDS)


def test_mixed_cross_entropy_is_that_of_the_soft_labels() -> None:
    labels, partners, kept = torch.arange(8), torch.tensor([3, 1, 9, 9, 4, 0, 1, 2]), torch.linspace(0, 1, 8).double()
    soft = torch.zeros(8, 100, dtype=torch.float64)
    for row in range(8):
        soft[row, labels[row]] += kept[row]
        soft[row, partners[row]] += 1 - kept[row]  # row 1 is a pair of one class
    expected = -(soft * STUDENT.log_softmax(1)).sum(1).mean()
    assert mixed_cross_entropy(STUDENT, labels, partners, kept).item() == pytest.approx(expected.item(), rel=1e-12)


def test_cross_entropy_acts_on_the_mixed_views_alone_where_there_are_any() -> None:
    labels, kept = torch.arange(8), torch.full((8,), 0.25)
    x, mixed_logits = (STUDENT.clone().requires_grad_() for _ in range(2))
    objective = Objective({"ce": 1.0}, 4)
    assert objective.wants_plain(mixing=False)
    assert not objective.wants_plain(mixing=True)
    assert objective(Plain(x, None, None, labels, labels), None)["ce"].equal(cross_entropy(x, labels))
    objective(None, Mixed(mixed_logits, None, labels, labels.flip(0), kept))["ce"].backward()
    assert x.grad is None
    assert mixed_logits.grad is not None


@given(st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6), st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_divergence_and_entropy_are_finite_and_within_their_bounds(teacher: list[float], student: list[float]) -> None:
    p, q = (torch.tensor([row], dtype=torch.float64, requires_grad=True) for row in (teacher, student))
    d = kld(p.detach(), q, 4.0)
    assert d.item() >= -1e-9
    assert kld(p.detach(), p.detach() + 7, 4.0).item() == pytest.approx(0, abs=1e-9)  # a shift changes no softmax
    assert -1e-12 <= entropy(q).item() <= torch.log(torch.tensor(6.0)).item() + 1e-6
    (d + entropy(q)).sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_no_candidate_that_is_left_scores_more_than_a_pick(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    picks = best(torch.tensor(scores, dtype=torch.float32), count).tolist()
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]
    assert picks == sorted(expected)
