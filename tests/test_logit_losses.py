"""Losses on logits against the values of the authors' code, and what they do at extremes and on mixed views."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcache.config.losses import CRLDOptions
from kdcache.losses import (
    LossContext,
    ViewOutputs,
    build_losses,
    crld_loss,
    cross_entropy,
    dist_loss,
    dkd_loss,
    kd_loss,
    kl_divergence,
    mlkd_loss,
    mlkd_strong_loss,
    nkd_loss,
    ofa_loss,
    rld_loss,
    standardize,
    ttm_loss,
    wttm_loss,
)
from kdcache.losses.crld import confident_rows
from kdcache.losses.mlkd import batch_correlation, class_correlation, mlkd_terms
from kdcache.losses.temperature import CurriculumTemperature
from tests.reference import BASE, golden, tensor

GOLDEN = golden("losses2")["results"]
LABELS = torch.tensor([(BASE + 7 * row) % 100 for row in range(8)])
STUDENT, TEACHER, STRONG_STUDENT, STRONG_TEACHER = (
    tensor(k, (8, 100), scale) for k, scale in ((0, 6), (1, 8), (20, 6), (21, 8))
)


def peaked(teacher: Tensor, heights: list[int]) -> Tensor:
    """Raise the largest logit of each row."""
    raised = torch.tensor(heights, dtype=teacher.dtype)[:, None]
    return teacher.scatter_add(1, teacher.argmax(1, keepdim=True), raised)


PEAKED = peaked(TEACHER, list(range(8)))
STRONG_PEAKED = peaked(STRONG_TEACHER, [(3 * row + 1) % 8 for row in range(8)])

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the student's logits for x and for x' to a loss."""


def on_x(loss: Callable[..., Tensor], *values: object, standardized: bool = False, **constants: float) -> Loss:
    def value(x: Tensor, _: Tensor) -> Tensor:
        logits = (standardize(x), standardize(TEACHER)) if standardized else (x, TEACHER)
        return loss(*logits, *values, **constants)

    return value


def scaled(weight: float, loss: Loss) -> Loss:
    return lambda x, strong: weight * loss(x, strong)


def both_cross_entropies(x: Tensor, strong: Tensor) -> Tensor:
    return cross_entropy(x, LABELS) + cross_entropy(strong, LABELS)


def dkd(alpha: float, beta: float, temperature: float, standardized: bool = False) -> Loss:
    return on_x(dkd_loss, LABELS, temperature, alpha, beta, standardized=standardized)


def rld(temperature: float, confidence: float, alpha: float, beta: float, standardized: bool = False) -> Loss:
    return on_x(rld_loss, LABELS, temperature, confidence, alpha, beta, standardized=standardized)


def ctkd(x: Tensor, _: Tensor) -> Tensor:
    (loss,) = build_losses(["ctkd"], LossContext((), (), LABELS, 4.0, 0)).values()
    return loss.double()(ViewOutputs(x, TEACHER, None, LABELS, LABELS))


CASES: dict[str, Loss] = {
    "ce": lambda x, _: cross_entropy(x, LABELS),
    "dist_cifar_b1_g1_T4": on_x(dist_loss),
    "dist_cifar_b2_g2_T4": scaled(2, on_x(dist_loss)),
    "dist_imagenet_b1_g1_T1": on_x(dist_loss, 1.0),
    "dist_imagenet_b2_g2_T1": scaled(2, on_x(dist_loss, 1.0)),
    **{f"dist_inter_T{t}": on_x(dist_loss, t, 1.0, 0.0) for t in (1, 4)},
    **{f"dist_intra_T{t}": on_x(dist_loss, t, 0.0, 1.0) for t in (1, 4)},
    **{
        f"lskd_kd_T{t}_w{weight}": scaled(weight, on_x(kd_loss, t, standardized=True))
        for t, weight in ((2, 1), (2, 9), (3, 9), (4, 12))
    },
    **{f"lskd_dkd_a{a}_b{b}_T2": dkd(a, b, 2.0, standardized=True) for a, b in ((1, 8), (9, 72), (9, 54), (9, 18))},
    "dkd_a1_b8_T4": on_x(dkd_loss, LABELS, 4.0),
    **{f"dkd_a1_b{b}_T{t}": dkd(1.0, b, t) for b, t in ((2, 4), (6, 4), (0.5, 1), (2, 1))},
    **{f"dkd_tckd_T{t}": dkd(1.0, 0.0, t) for t in (1, 4)},
    **{f"dkd_nckd_T{t}": dkd(0.0, 1.0, t) for t in (1, 4)},
    "nkd_T1_g1.5": on_x(nkd_loss, LABELS),
    "nkd_T1_g1": on_x(nkd_loss, LABELS, 1.0, 1.0),
    "nkd_T3_g3.5": on_x(nkd_loss, LABELS, 3.0, 3.5),
    "nkd_target_term": on_x(nkd_loss, LABELS, 1.0, 0.0),
    "rld_cifar_a1_b8_T4_aT1": on_x(rld_loss, LABELS),
    "rld_cifar_a1_b8_T4_aT4_same_t": rld(4.0, 4.0, 1.0, 8.0),
    "rld_imagenet_a1_b0.5_T1_aT1": rld(1.0, 1.0, 1.0, 0.5),
    "rld_imagenet_a1_b2_T1_aT1": rld(1.0, 1.0, 1.0, 2.0),
    **{f"rld_scd_T{t}": rld(4.0, t, 1.0, 0.0) for t in (1, 4)},
    **{f"rld_mcd_T{t}": rld(t, 1.0, 0.0, 1.0) for t in (1, 4)},
    "rld_logit_stand_a9_b72_T2_aT2": rld(2.0, 2.0, 9.0, 72.0, standardized=True),
    "rld_cifar_a1_b8_T4_aT4_labels_are_teacher_top": on_x(rld_loss, TEACHER.argmax(1), 4.0, 4.0),
    **{f"mlkd_piece_cc_T{t}": on_x(class_correlation, t) for t in (1, 4)},
    **{f"mlkd_piece_bc_T{t}": on_x(batch_correlation, t) for t in (1, 4)},
    **{f"ttm_l{e:g}": on_x(ttm_loss, e) for e in (0.1, 0.2, 1.0)},
    **{f"wttm_l{e:g}": on_x(wttm_loss, e) for e in (0.1, 0.2, 1.0)},
    "ctkd_global_first_lam-1": ctkd,
    **{f"ofa_eps{e:g}": on_x(ofa_loss, LABELS, e) for e in (1.0, 1.5, 1.2)},
}


def crld(teachers: tuple[Tensor, Tensor], options: CRLDOptions) -> Loss:
    return lambda x, strong: crld_loss((x, teachers[0]), (strong, teachers[1]), LABELS, options)


def crld_cases() -> dict[str, Loss]:
    """The sum, and each term alone, with the other weights 0."""
    found = {}
    weights = {"ce": "ce_weight", "kd_wv": "within_weight", "kd_cv": "cross_weight"}
    for name, views, options in (
        ("cifar_ce1_wv2_cv0.5_T4", "plain", CRLDOptions()),
        ("cifar_ce1_wv2_cv0.5_T4", "peaked", CRLDOptions()),
        ("imagenet_ce2_wv2_cv0.5_T1", "peaked", CRLDOptions(ce_weight=2, temperature=1)),
        ("tinyimagenet_ce1_wv4_cv1_T2", "peaked", CRLDOptions(within_weight=4, cross_weight=1, temperature=2)),
    ):
        teachers = (TEACHER, STRONG_TEACHER) if views == "plain" else (PEAKED, STRONG_PEAKED)
        for term in ("total", *weights):
            others = {weight: 0.0 for other, weight in weights.items() if term not in ("total", other)}
            case = f"crld_{name}_tw0.9_ts0.2_{views}_{term}"
            found[case] = crld(teachers, options.model_copy(update=others))
    return found


def mlkd_term(teacher: Tensor, how: tuple[float, bool], part: int) -> Loss:
    return lambda x, _: mlkd_terms(x, teacher, *how)[part]


def mlkd_strong(teachers: tuple[Tensor, Tensor], how: tuple[float, bool]) -> Loss:
    return lambda x, strong: mlkd_strong_loss((x, teachers[0]), (strong, teachers[1]), *how)


def mlkd_weak(teacher: Tensor, how: tuple[float, bool]) -> Loss:
    return lambda x, _: mlkd_loss(x, teacher, *how)


def added(*losses: Loss) -> Loss:
    return lambda x, strong: torch.stack([loss(x, strong) for loss in losses]).sum()


def mlkd_cases() -> dict[str, Loss]:
    """Sums and terms, of two views and of one."""
    found = {}
    for names, views, how, kd_weight, ce_weight in (
        (("mlkd_cifar_T4_w0.9_ce0.1", "mlkd_oneview_cifar_T4_w0.9_ce0.1"), "plain", (4.0, False), 0.9, 0.1),
        (("mlkd_cifar_T4_w0.9_ce0.1_peaked",), "peaked", (4.0, False), 0.9, 0.1),
        (("mlkd_imagenet_T1_w0.5_ce0.5",), "plain", (1.0, False), 0.5, 0.5),
        (("lskd_mlkd_T2_w9_ce0.1", "lskd_mlkd_oneview_T2_w9_ce0.1"), "plain", (2.0, True), 9.0, 0.1),
    ):
        teachers = (TEACHER, STRONG_TEACHER) if views == "plain" else (PEAKED, STRONG_PEAKED)
        kd, cc, bc = (scaled(kd_weight, mlkd_term(teachers[0], how, part)) for part in range(3))
        weak, strong = (scaled(kd_weight, loss) for loss in (mlkd_weak(teachers[0], how), mlkd_strong(teachers, how)))
        ce, both_ce = scaled(ce_weight, CASES["ce"]), scaled(ce_weight, both_cross_entropies)
        two_views = {
            **{"kd_weak": kd, "kd_strong": strong, "kd": added(kd, strong), "cc": cc, "bc": bc, "ce": both_ce},
            **{"logit_part": added(weak, strong), "total": added(weak, strong, both_ce)},
        }
        one_view = {"kd": kd, "cc": cc, "bc": bc, "ce": ce, "logit_part": weak, "total": added(weak, ce)}
        for name, terms in zip(names, (two_views, one_view), strict=False):
            found |= {f"{name}_{term}": loss for term, loss in terms.items()}
    return found


CASES |= {**crld_cases(), **mlkd_cases()}


def test_every_reference_value_is_tested() -> None:
    # Tested below; what the authors' code computes and does not use is not computed here.
    elsewhere = ("_masks", "_lam-0.5", "_unused")
    assert {name for name in GOLDEN if not name.endswith(elsewhere)} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_match_the_reference(name: str) -> None:
    expected = GOLDEN[name]
    x, strong = STUDENT.clone().requires_grad_(), STRONG_STUDENT.clone().requires_grad_()
    loss = CASES[name](x, strong)
    assert loss.item() == pytest.approx(expected["value"], rel=1e-9, abs=1e-12)
    loss.backward()
    found = [0.0 if logits.grad is None else logits.grad.norm().item() for logits in (x, strong)]
    norms = [expected["grad_norm"], expected.get("grad_norm_2", 0.0)]
    assert found == pytest.approx(norms, rel=1e-9, abs=1e-12)


def test_confident_rows_match_the_reference() -> None:
    for views, teachers in (("plain", (TEACHER, STRONG_TEACHER)), ("peaked", (PEAKED, STRONG_PEAKED))):
        masks = GOLDEN[f"crld_cifar_ce1_wv2_cv0.5_T4_tw0.9_ts0.2_{views}_masks"]
        assert confident_rows(teachers[0], 0.9).tolist() == masks["mask_w"]
        assert confident_rows(teachers[1], 0.2).tolist() == masks["mask_s"]


def test_a_learned_temperature_gets_a_reversed_gradient_that_grows() -> None:
    (term,) = build_losses(["ctkd"], LossContext((), (), LABELS, 4.0, 0)).values()
    assert isinstance(term, CurriculumTemperature)
    term.double()
    for epoch, name in ((9, "ctkd_global_first_lam-1"), (4, "ctkd_global_lam-0.5"), (30, "ctkd_global_first_lam-1")):
        term.zero_grad()
        x = STUDENT.clone().requires_grad_()
        term(ViewOutputs(x, TEACHER, None, LABELS, LABELS, epoch)).backward()
        assert term.raw_temperature.grad is not None
        expected = GOLDEN[name]["grad_temperature_parameter"]
        assert term.raw_temperature.grad.item() == pytest.approx(expected, rel=1e-9)
        assert term.gradient_factor(epoch) == pytest.approx(GOLDEN[name]["constants"]["lam"])


ONE_VIEW = ("kd", "dkd", "dist", "nkd", "rld", "ofa", "ttm", "wttm", "ctkd", "mlkd-one-view")
TWO_VIEWS = ("mlkd", "crld")


def views_of(student: Tensor, teacher: Tensor, labels: Tensor, mixed: bool = False) -> ViewOutputs:
    kl = kl_divergence(student, teacher, 4.0)
    more = {"partner_labels": labels, "lam": torch.ones(len(labels))} if mixed else {}
    return ViewOutputs(student, teacher, kl, labels, labels, **more)


@pytest.mark.parametrize("name", [*ONE_VIEW, *TWO_VIEWS])
def test_losses_are_finite_at_extremes_and_compute_in_float32(name: str) -> None:
    (term,) = build_losses([name], LossContext((), (), torch.arange(3), 4.0, 0)).values()
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [2.0, 2.0, 2.0]])
    student = teacher.flip(0).clone().requires_grad_()
    labels = torch.tensor([0, 0, 1])  # row 1: the teacher's lowest class
    calls = [views_of(student, teacher, labels), views_of(student.flip(1), teacher, labels, mixed=True)]
    loss = term(*(calls if name in TWO_VIEWS else calls[:1]))
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # A network under autocast may hand over half-precision logits.
    halves = [views_of(STUDENT.bfloat16(), TEACHER.half(), LABELS, mixed) for mixed in (False, True)]
    wide = [views_of(STUDENT.bfloat16().float(), TEACHER.half().float(), LABELS, mixed) for mixed in (False, True)]
    number = 2 if name in TWO_VIEWS else 1
    found = term(*halves[:number])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, term(*wide[:number]))


def test_the_refined_loss_has_no_order_below_the_lowest_class() -> None:
    student = STUDENT.clone().requires_grad_()
    loss = rld_loss(student, TEACHER, TEACHER.argmin(1), alpha=0.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.norm() == 0


def test_rld_with_the_teachers_class_is_dkd() -> None:
    top = TEACHER.argmax(1)
    torch.testing.assert_close(rld_loss(STUDENT, TEACHER, top, 4.0, 4.0), dkd_loss(STUDENT, TEACHER, top, 4.0))


TERM_VALUES = {
    "dkd": "dkd_a1_b8_T4",
    "dist": "dist_cifar_b1_g1_T4",
    "nkd": "nkd_T1_g1.5",
    "rld": "rld_cifar_a1_b8_T4_aT1",
    "ofa": "ofa_eps1",
    "ttm": "ttm_l0.1",
    "wttm": "wttm_l0.2",
    "mlkd": "mlkd_cifar_T4_w0.9_ce0.1_peaked_total",
    "crld": "crld_cifar_ce1_wv2_cv0.5_T4_tw0.9_ts0.2_peaked_total",
}


@pytest.mark.parametrize("name", TERM_VALUES)
def test_terms_with_their_default_options_match_the_reference(name: str) -> None:
    (term,) = build_losses([name], LossContext((), (), LABELS, 4.0, 0)).values()
    teachers = (PEAKED, STRONG_PEAKED) if name in TWO_VIEWS else (TEACHER, STRONG_TEACHER)
    calls = [views_of(STUDENT, teachers[0], LABELS), views_of(STRONG_STUDENT, teachers[1], LABELS, mixed=True)]
    found = term(*(calls if name in TWO_VIEWS else calls[:1]))
    assert found.item() == pytest.approx(GOLDEN[TERM_VALUES[name]]["value"], rel=1e-9)


def test_the_multi_level_loss_of_one_view_has_its_weight_outside() -> None:
    (term,) = build_losses(["mlkd-one-view"], LossContext((), (), LABELS, 4.0, 0)).values()
    expected = GOLDEN["mlkd_oneview_cifar_T4_w0.9_ce0.1_logit_part"]["value"]
    assert 0.9 * term(views_of(STUDENT, TEACHER, LABELS)).item() == pytest.approx(expected, rel=1e-9)
