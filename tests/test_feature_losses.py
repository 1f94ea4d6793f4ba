"""Losses on features: reference values, cases worked out by hand, and gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcache.losses import features
from kdcache.losses.crd import ContrastMemory
from kdcache.losses.logits import kd_loss
from kdcache.losses.target_class import dkd_loss
from tests.reference import BASE, golden, tensor

GOLDEN = golden("losses")["results"]
LABELS = torch.tensor([(BASE + 7 * row) % 100 for row in range(8)])
VECTOR, EQUAL, WIDE = tensor(2, (8, 64)), tensor(3, (8, 64)), tensor(4, (8, 128))
MAP, SMALL_MAP = tensor(5, (8, 16, 16, 16)).abs(), tensor(6, (8, 32, 8, 8)).abs()

CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "at_p2": (features.at_loss, MAP, SMALL_MAP),
    "sp": (features.sp_loss, MAP, SMALL_MAP),
    "nst": (features.nst_loss, MAP, SMALL_MAP),
    "rkd_25_50": (features.rkd_loss, VECTOR, WIDE),
    "pkt": (features.pkt_loss, VECTOR, WIDE),
    "cc": (features.cc_loss, VECTOR, EQUAL),
    "fitnet_mse": (features.fitnet_loss, VECTOR, EQUAL),
    "dkd_a1_b8_T4": (
        lambda student, teacher: dkd_loss(student, teacher, LABELS, 4.0),
        tensor(0, (8, 100), 6),
        tensor(1, (8, 100), 8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_match_the_reference_and_gradients_reach_the_student_alone(name: str) -> None:
    loss_of, student, teacher = CASES[name]
    student = student.clone().requires_grad_()
    loss = loss_of(student, teacher)
    loss.backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(GOLDEN[name]["value"], rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(GOLDEN[name]["grad_norm"], rel=1e-9)
    assert teacher.grad is None


def test_the_larger_map_is_pooled() -> None:
    for loss_of in (features.at_loss, features.nst_loss):
        pooled = torch.nn.functional.adaptive_avg_pool2d(MAP, 8)
        torch.testing.assert_close(loss_of(MAP, SMALL_MAP), loss_of(pooled, SMALL_MAP))
        torch.testing.assert_close(loss_of(SMALL_MAP, MAP), loss_of(SMALL_MAP, pooled))


def test_variational_information_by_hand() -> None:
    """Two channels of one pixel: 0.5 (1^2/2 + log 2) and 0.5 (3^2/4 + log 4), then their mean."""
    predicted, teacher = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1), torch.tensor([2.0, 2.0]).view(1, 2, 1, 1)
    found = features.vid_loss(predicted, teacher, torch.tensor([2.0, 4.0]))
    assert found.item() == pytest.approx((0.5 * (1 / 2 + math.log(2)) + 0.5 * (9 / 4 + math.log(4))) / 2)


def test_half_precision_inputs_give_float32() -> None:
    for name, (loss_of, student, teacher) in CASES.items():
        found = loss_of(student.bfloat16(), teacher.bfloat16())
        assert found.dtype == torch.float32, name
        assert found.item() == pytest.approx(GOLDEN[name]["value"], rel=0.1), name


def test_decoupled_loss_stays_finite_at_extremes_and_splits_the_divergence() -> None:
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0]])
    student = teacher.flip(0).clone().requires_grad_()
    loss = dkd_loss(student, teacher, torch.tensor([0, 1]), 4.0)
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    # Equation 7 of the paper: with weight 1 - p(label) on the second term, it equals plain distillation.
    one, two, label = torch.randn(1, 5).double(), torch.randn(1, 5).double(), torch.tensor([3])
    beta = 1 - (one / 4).softmax(1)[0, 3].item()
    torch.testing.assert_close(dkd_loss(two, one, label, 4.0, beta=beta), kd_loss(two, one, 4.0))


def embedded(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors @ weight.T + bias)


def memory(width: int = 16, samples: int = 200) -> ContrastMemory:
    made = ContrastMemory(samples, width).double()
    scale = 1 / math.sqrt(width / 3)
    made.student.copy_(tensor(14, (samples, width), scale))
    made.teacher.copy_(tensor(15, (samples, width), scale))
    return made


SAMPLES = torch.tensor([(BASE + 23 * row) % 200 for row in range(8)])


def negatives(count: int) -> Tensor:
    return torch.tensor([[(BASE + 3 * i + 7 * k + 1) % 200 for k in range(count)] for i in range(8)])


def test_crd_matches_the_reference_over_two_calls() -> None:
    contrast = memory()
    teacher = embedded(WIDE, tensor(12, (16, 128), 0.3), tensor(13, (16,), 0.1))
    for name in ("crd_first", "crd_second"):
        student = VECTOR.clone().requires_grad_()
        embedding = embedded(student, tensor(10, (16, 64), 0.3), tensor(11, (16,), 0.1))
        loss = contrast(embedding, teacher, SAMPLES, negatives(32))
        loss.backward()
        assert student.grad is not None
        assert loss.item() == pytest.approx(GOLDEN[name]["value"], rel=1e-9), name
        assert student.grad.norm().item() == pytest.approx(GOLDEN[name]["grad_norm"], rel=1e-9), name
    assert contrast.normalizer.tolist() == pytest.approx(GOLDEN["crd_Z"], rel=1e-9)
    memories = contrast.student, contrast.teacher
    found = [*(rows[SAMPLES].norm() for rows in memories), *(rows.sum() for rows in memories)]
    assert torch.stack(found).tolist() == pytest.approx(GOLDEN["crd_memory_norms"], rel=1e-9)
    assert not any(buffer.requires_grad for buffer in contrast.buffers())


def test_the_dense_product_equals_gathering() -> None:
    contrast, rows = memory(), negatives(60)  # 200 samples: few enough for the dense product
    gathered = [contrast._scores(VECTOR[:, :16], contrast.teacher, part) for part in rows.split(10, dim=1)]
    torch.testing.assert_close(contrast._scores(VECTOR[:, :16], contrast.teacher, rows), torch.cat(gathered, 1))
