"""Losses and pick criteria: golden figures, hand-worked cases, extremes, and their declarations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.choices import CRITERIA, LOSSES, MIXES
from kdcache.errors import KdcacheError
from kdcache.extensions import import_object
from kdcache.losses import (
    DistillLoss,
    LossContext,
    Objective,
    ViewOutputs,
    build_losses,
    cross_entropy,
    entropy,
    kd_loss,
    kl_divergence,
    mixed_cross_entropy,
)
from kdcache.selection import Candidates, score, top_scores
from kdcache.views.mixes import Mix, find_mix
from tests.reference import tensor

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())["results"]
STUDENT, TEACHER = tensor(0, (8, 100), 6), tensor(1, (8, 100), 8)


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd_matches_the_reference(temperature: int) -> None:
    student = STUDENT.clone().requires_grad_()
    loss = kd_loss(student, TEACHER, temperature)
    loss.backward()
    expected = GOLDEN[f"kd_T{temperature}"]
    assert student.grad is not None
    assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(expected["grad_norm"], rel=1e-9)


def test_d_and_entropies_match_the_reference() -> None:
    assert kl_divergence(STUDENT, TEACHER, 4).tolist() == pytest.approx(GOLDEN["d_kld_T4"], rel=1e-9)
    assert entropy(TEACHER).tolist() == pytest.approx(GOLDEN["teacher_entropy_T1"], rel=1e-9)
    assert entropy(STUDENT).tolist() == pytest.approx(GOLDEN["student_entropy_T1"], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype=dtype)
    student = teacher.flip(0).clone().requires_grad_()
    loss = kd_loss(student, teacher, 4.0) + entropy(student).sum() + cross_entropy(student, torch.tensor([0, 1]))
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert entropy(teacher).tolist() == [0, 0]


def test_half_precision_inputs_are_computed_in_float32() -> None:
    halves = STUDENT.bfloat16(), TEACHER.half()
    assert kl_divergence(halves[0], halves[1], 4).dtype == torch.float32
    torch.testing.assert_close(
        kl_divergence(halves[0], halves[1], 4), kl_divergence(halves[0].float(), halves[1].float(), 4)
    )
    assert entropy(halves[0]).dtype == torch.float32


def objective(weights: dict[str, float]) -> Objective:
    return Objective(weights, build_losses(weights, LossContext((), (), torch.arange(8), temperature=4, seed=0)))


def test_distillation_of_x_and_of_mixed_views_are_means_over_their_own_rows() -> None:
    labels = torch.arange(8)
    kl, mixed_kl = kl_divergence(STUDENT, TEACHER, 4), kl_divergence(STUDENT[:3] * 2, TEACHER[:3], 4)
    x = ViewOutputs(STUDENT, TEACHER, kl, labels, labels)
    lam = torch.ones(3)
    mixed = ViewOutputs(
        STUDENT[:3] * 2, TEACHER[:3], mixed_kl, labels[:3], labels[:3], partner_labels=labels[1:4], lam=lam
    )
    on_x = 0.1 * cross_entropy(STUDENT, labels) + 0.9 * 16 * kl.mean()
    equation_1 = objective({"ce": 0.1, "kd": 0.9})
    torch.testing.assert_close(sum(equation_1(x, None).values()), on_x)
    on_both = on_x + 0.9 * 16 * mixed_kl.mean()
    torch.testing.assert_close(sum(equation_1(x, mixed).values()), on_both)


class RowCount(DistillLoss):
    """Returns the number of rows that it was called with, times 10 for a pair of views."""

    def forward(self, *views: ViewOutputs) -> Tensor:
        return torch.tensor([float(len(rows.student)) for rows in views]).sum() * 10 ** (len(views) - 1)


@pytest.mark.parametrize(("acts_on", "expected"), [("x", 5.0), ("each", 5.0 + 0.5 * 3), ("pairs", 80.0)])
def test_a_loss_gets_the_views_that_it_is_declared_for(
    acts_on: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "rows", replace(LOSSES["kd"], acts_on=acts_on))
    context = LossContext((), (), torch.arange(8), 4, 0)
    counted = Objective({"rows": 2.0}, {"rows": RowCount(context)})
    x = ViewOutputs(STUDENT[:5], None, None, torch.arange(5), torch.arange(5))
    mixed = ViewOutputs(STUDENT[:3], None, None, torch.arange(3), torch.arange(3), process_weight=0.5)
    assert counted(x, mixed)["rows"] == 2 * expected


def test_criteria_match_the_reference() -> None:
    labels, kl = torch.arange(8), kl_divergence(STUDENT, TEACHER, 4)
    known = Candidates(TEACHER, STUDENT, kl, labels, labels, torch.ones(8), torch.arange(8.0))
    scores = {name: score(name, known) for name in CRITERIA}
    assert scores["kld"].tolist() == pytest.approx(GOLDEN["d_kld_T4"])
    assert scores["teacher-entropy"].tolist() == pytest.approx(GOLDEN["teacher_entropy_T1"])
    assert scores["student-entropy"].tolist() == pytest.approx(GOLDEN["student_entropy_T1"])
    assert scores["random"].equal(torch.arange(8.0))


def test_top_scores_break_ties_by_position() -> None:
    assert top_scores(torch.tensor([1.0, 5.0, 3.0, 5.0, 3.0, 0.0]), 3).tolist() == [1, 2, 3]
    assert top_scores(torch.tensor([2.0, 2.0, 2.0, 2.0]), 2).tolist() == [0, 1]


def test_every_declared_implementation_exists() -> None:
    assert all(issubclass(import_object(loss.implementation), DistillLoss) for loss in LOSSES.values())
    assert {loss.reads for loss in LOSSES.values()} <= {"labels", "logits", "vectors", "features"}
    assert {loss.acts_on for loss in LOSSES.values()} <= {"x", "each", "pairs"}
    assert all(callable(import_object(criterion.implementation)) for criterion in CRITERIA.values())
    assert all(isinstance(find_mix(name), Mix) for name in MIXES)


def test_mixed_cross_entropy_is_that_of_the_soft_labels() -> None:
    labels, partners, lam = torch.arange(8), torch.tensor([3, 1, 9, 9, 4, 0, 1, 2]), torch.linspace(0, 1, 8).double()
    soft = torch.zeros(8, 100, dtype=torch.float64)
    for row in range(8):
        soft[row, labels[row]] += lam[row]
        soft[row, partners[row]] += 1 - lam[row]  # both labels of row 1 are the same
    expected = -(soft * STUDENT.log_softmax(1)).sum(1).mean()
    assert mixed_cross_entropy(STUDENT, labels, partners, lam).item() == pytest.approx(expected.item(), rel=1e-12)


def test_cross_entropy_alone_acts_on_mixed_views_if_there_are_any() -> None:
    labels, lam = torch.arange(8), torch.full((8,), 0.25)
    x, mixed_logits = (STUDENT.clone().requires_grad_() for _ in range(2))
    alone = objective({"ce": 1.0})
    assert alone.trains_on_x(mixing=False)
    assert not alone.trains_on_x(mixing=True)
    assert alone(ViewOutputs(x, None, None, labels, labels), None)["ce"].equal(cross_entropy(x, labels))
    mixed = ViewOutputs(mixed_logits, None, None, labels, labels, partner_labels=labels.flip(0), lam=lam)
    loss = alone(None, mixed)["ce"]
    assert loss.equal(mixed_cross_entropy(mixed_logits, labels, labels.flip(0), lam))
    loss.backward()
    assert x.grad is None
    assert mixed_logits.grad is not None


@given(st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6), st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6))
@settings(max_examples=60)
def test_divergence_and_entropy_are_finite_and_bounded(teacher: list[float], student: list[float]) -> None:
    p, q = (torch.tensor([row], dtype=torch.float64, requires_grad=True) for row in (teacher, student))
    d = kl_divergence(q, p.detach(), 4.0)
    assert d.item() >= -1e-9
    assert kl_divergence(p.detach() + 7, p.detach(), 4.0).item() == pytest.approx(
        0, abs=1e-9
    )  # softmax is shift-invariant
    assert -1e-12 <= entropy(q).item() <= torch.log(torch.tensor(6.0)).item() + 1e-6
    (d + entropy(q)).sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.data())
@settings(max_examples=60)
def test_no_rejected_candidate_scores_higher_than_a_pick(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    picks = top_scores(torch.tensor(scores, dtype=torch.float32), count).tolist()
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]
    assert picks == sorted(expected)


def test_losses_and_criteria_of_a_wrong_shape_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class PerRow(DistillLoss):
        def forward(self, views: ViewOutputs) -> Tensor:
            return views.student.mean(1)

    monkeypatch.setitem(LOSSES, "rows", LOSSES["ce"])
    labels = torch.arange(8)
    wrong = Objective({"rows": 1.0}, {"rows": PerRow(LossContext((), (), labels, 4, 0))})
    with pytest.raises(KdcacheError, match=r"loss rows: .* expected a tensor of shape \(\), got one of shape \(8,\)"):
        wrong(ViewOutputs(STUDENT, None, None, labels, labels), None)
    candidates = Candidates(None, None, None, labels, labels, torch.ones(8), torch.ones(1, 8))
    with pytest.raises(KdcacheError, match=r"criterion teacher-entropy: .* of shape \(1, 8\), got one of shape \(8,\)"):
        score("teacher-entropy", candidates._replace(teacher=TEACHER))
