"""The terms of an objective in training: what each reads and trains, and that its own value falls."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcache.stages import train_student
from torch import Tensor

from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.choices import LOSSES
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.losses import LossContext, ViewOutputs, build_losses
from kdcache.losses.crd import CRD
from kdcache.losses.features import at_loss, nst_loss
from tests import answers
from tests.reference import tensor
from tests.stubs import stub
from tests.test_step import TERMS, Bench, mixing_aug

SIZE = 32
Settings = dict[str, Any]


def trained_sums() -> list[tuple[str, str, str]]:
    """Each loss in sums and with views such that the student is trained on all views that are paid for."""
    found = []
    for name in TERMS:
        if LOSSES[name].acts_on != "pairs":
            found.append((name, name, "standard"))
        found.append((name, f"{name}+kd" if LOSSES[name].acts_on == "x" else name, mixing_aug(name)))
    return found


DOMINATED = {"vid": "vid:20", "ofa": "ofa:50", "wttm": "wttm:40"}
"""Losses beside which the others would dominate on so few images, with other weights."""

EPOCHS = {"crd": 4}
"""Epochs until a loss falls, if not 2. CRD's memories are random at first, and half replaced in an epoch: with so few
images its value rises at first, at any learning rate."""


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        ("ce", {"ce": 1.0}),
        ("kd", {"ce": 0.1, "kd": 0.9}),
        ("at", {"ce": 1.0, "at": 1000.0}),
        ("crd+kd", {"ce": 0.1, "crd": 0.8, "kd": 0.9}),
        ("crd:0.5+kd:2", {"ce": 0.1, "crd": 0.5, "kd": 1.8}),
        ("ce+kd+crd", {"ce": 1.0, "kd": 1.0, "crd": 0.8}),
        ("sp:0", {"ce": 1.0, "sp": 0.0}),
    ],
)
def test_weights_of_a_sum(loss: str, weights: dict[str, float]) -> None:
    assert StudentConfig(loss=loss).loss_weights == pytest.approx(weights)


@pytest.mark.parametrize("loss", ["", "kd+", "kd+kd", "crd:-1", "crd:x", "crd:nan", "crd:inf", "mse", "kd,crd"])
def test_malformed_sums_are_refused(loss: str) -> None:
    with pytest.raises(ValueError, match=r"such as crd:0\.8\+kd"):
        StudentConfig(loss=loss)


@pytest.mark.parametrize(("name", "loss", "aug"), trained_sums())
def test_gradients_reach_the_student_and_the_term_but_not_the_teacher(
    name: str, loss: str, aug: str, noise: Split
) -> None:
    bench = Bench(noise, build=stub, aug=aug, loss=f"ce:0+{loss.replace(name, f'{name}:1', 1)}")
    bench.step(bench.batch)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in bench.student.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bench.step.objective.parameters())
    assert all(p.grad is None for p in bench.teacher.parameters())
    # x goes through the teacher once, with its vector or its features, and each candidate once.
    expected = SIZE * {"cutmix-pick": 3, "randaugment": 2, "standard": 1}[aug]
    assert bench.step.teacher is not None
    assert bench.step.teacher.pop_counts() == (expected, expected)


def test_features_of_x_are_computed_and_logits_have_the_bits_of_the_store(noise: Split, tmp_path: Path) -> None:
    views = answers.views(noise)
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, views, epochs=1)
    list(cached_teacher.precompute(1))
    cached_teacher.pop_counts()
    batch = next(views.epoch(0))
    logits, vectors, features = cached_teacher.outputs(batch, features=True)
    assert cached_teacher.pop_counts().as_metrics() == {
        "teacher_forwards": 64,
        "cache_hits": 128,
    }  # stored answers have no features
    assert logits.equal(CachedTeacher(answers.teacher(), views).logits(batch))
    expected = answers.teacher().network.features(batch.views[:64])
    assert all(one.equal(two) for one, two in zip(features, expected, strict=True))
    assert vectors is not None
    assert vectors.equal(features[-1])
    assert not any(feature.requires_grad for feature in features)


@pytest.mark.parametrize("teacher", ["resnet8x4", "vgg8", "wrn_16_2", "MobileNetV2"])
@pytest.mark.parametrize("name", [name for name, word in LOSSES.items() if word.features or word.vectors])
def test_terms_fit_networks_of_different_shapes(name: str, teacher: str) -> None:
    from kdcache import models

    student_net, teacher_net = (models.build(one, num_classes=4, seed=0) for one in ("resnet8", teacher))
    labels = torch.arange(8) % 4
    shapes = student_net.feature_shapes(), teacher_net.feature_shapes()
    widths = {"student_width": shapes[0][-1][0], "teacher_width": shapes[1][-1][0]}
    context = LossContext(*shapes, labels.repeat(9), 4.0, 0, **widths)
    (term,) = build_losses([name], context).values()
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    (student, s), (taught, t) = student_net.with_features(images), teacher_net.with_features(images)
    features = {"student_features": tuple(s), "teacher_features": tuple(feature.detach() for feature in t)}
    features |= {"student_vectors": s[-1], "teacher_vectors": t[-1].detach()}
    loss = term(ViewOutputs(student, taught, None, labels, torch.arange(8), **features))
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()


@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=5),
)
@settings(max_examples=40)
def test_negatives_are_of_other_classes_and_the_same_in_any_batch(seed: int, epoch: int, counts: list[int]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    crd = CRD(LossContext((), (), labels, 4.0, seed, student_width=4, teacher_width=4))
    samples = torch.arange(len(labels))
    drawn = crd.negatives(samples, labels, epoch, 50)
    assert (labels[drawn] != labels[:, None]).all()
    assert crd.negatives(samples[1:2], labels[1:2], epoch, 50).equal(drawn[1:2])
    if len(labels) > 6:
        assert not crd.negatives(samples, labels, epoch + 1, 50).equal(drawn)


def test_negatives_are_uniform_over_the_samples_of_other_classes() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 0, 2])
    crd = CRD(LossContext((), (), labels, 4.0, 3, student_width=4, teacher_width=4))
    drawn = crd.negatives(torch.tensor([1, 0]), labels[torch.tensor([1, 0])], 5, 60_000)
    for row, others in ((0, [0, 3, 4, 5, 6, 7]), (1, [1, 2, 3, 4, 5, 7])):
        shares = torch.bincount(drawn[row], minlength=8)[others] / 60_000
        assert (shares - 1 / 6).abs().max() < 5 * (1 / 6 * 5 / 6 / 60_000) ** 0.5
    assert abs(torch.corrcoef(drawn.double())[0, 1]) < 0.02


def student(small: Settings, teacher: Path, out: Path, **more: Any) -> dict[str, list[float]]:
    own = {"teacher": teacher, "out": out, "lr": 0.01}
    run = train_student(StudentConfig.load(**{**small, **own, **more}))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["teacher_forwards"] + line["cache_hits"] > 0 for line in lines)
    return {name: [line["loss_parts"][name] for line in lines] for name in lines[0]["loss_parts"]}


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_recorded_and_falls(name: str, small: Settings, teacher: Path, tmp_path: Path) -> None:
    aug = "standard" if LOSSES[name].acts_on == "x" else mixing_aug(name)
    sizes = {"epochs": EPOCHS.get(name, 2), "batch_size": 15}
    parts = student(small, teacher, tmp_path / "run", loss=DOMINATED.get(name, name), aug=aug, **sizes)
    assert name in parts
    assert parts[name][-1] < parts[name][0]


def test_terms_are_recorded_separately_and_weight_0_changes_the_student(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    both = student(small, teacher, tmp_path / "both", loss="sp+kd", aug="cutmix-pick", epochs=2)
    none = student(small, teacher, tmp_path / "none", loss="sp:0+kd", aug="cutmix-pick", epochs=2)
    assert both.keys() == none.keys() == {"ce", "sp", "kd"}
    assert none["sp"] == [0.0, 0.0]
    assert both["kd"] != none["kd"]


SHAPES = ((4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2), (8,))
"""Maps of a stem and of three stages, and the vector."""


def features_of_x() -> ViewOutputs:
    """Outputs of both networks for six samples."""
    labels, logits = torch.arange(6) % 3, torch.zeros(6, 3)
    student, teacher = ([tensor(k + i, (6, *shape)).float() for i, shape in enumerate(SHAPES)] for k in (0, 10))
    features = {"student_features": tuple(student), "teacher_features": tuple(teacher)}
    vectors = {"student_vectors": student[-1], "teacher_vectors": teacher[-1]}
    return ViewOutputs(logits, logits, None, labels, torch.arange(6), **features, **vectors)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("at", {1, 2, 3}),
        ("nst", {1, 2, 3}),
        ("vid", {1, 2, 3}),
        ("sp", {3}),
        ("fitnet", {2}),
        ("rkd", {4}),
        ("crd", {4}),
        ("embed", {4}),
    ],
)
def test_a_loss_reads_the_features_that_its_recipe_names(name: str, read: set[int]) -> None:
    views = features_of_x()
    context = LossContext(SHAPES, SHAPES, views.labels, 4.0, 0, student_width=8, teacher_width=8)
    (term,) = build_losses([name], context).values()
    for feature in views.student_features:
        feature.requires_grad_()
    term(views).backward()
    assert {place for place, feature in enumerate(views.student_features) if feature.grad is not None} == read


@pytest.mark.parametrize(("student", "teacher", "kernel"), [(28, 12, 1), (12, 28, 1), (8, 8, 1), (8, 4, 3), (4, 8, 4)])
def test_the_regressor_of_fitnet_is_small_at_every_size(student: int, teacher: int, kernel: int) -> None:
    shapes = [(*SHAPES[:2], (6, size, size), *SHAPES[3:]) for size in (student, teacher)]
    (term,) = build_losses(["fitnet"], LossContext(*shapes, torch.arange(3), 4.0, 0)).values()
    assert term.regressor[0].kernel_size == (kernel, kernel)
    own, other = ([tensor(k, (3, *shape)).float() for shape in shapes[k]] for k in (0, 1))
    logits = torch.zeros(3, 3)
    views = ViewOutputs(logits, logits, None, torch.arange(3), torch.arange(3), 0, None, None, tuple(own), tuple(other))
    assert term(views).isfinite()


@pytest.mark.parametrize(("name", "loss_of"), [("at", at_loss), ("nst", nst_loss)])
def test_losses_on_maps_are_summed_over_the_stages(name: str, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    views = features_of_x()
    (term,) = build_losses([name], LossContext(SHAPES, SHAPES, views.labels, 4.0, 0)).values()
    pairs = list(zip(views.student_features, views.teacher_features, strict=True))[1:4]
    torch.testing.assert_close(term(views), loss_of(*pairs[0]) + loss_of(*pairs[1]) + loss_of(*pairs[2]))


def test_the_variances_of_vid_begin_at_the_published_value() -> None:
    (term,) = build_losses(["vid"], LossContext(SHAPES, SHAPES, torch.arange(3), 4.0, 0)).values()
    variances = [torch.nn.functional.softplus(raw) + term.MIN_VARIANCE for raw in term.raw_variances]
    assert [len(variance) for variance in variances] == [4, 6, 8]
    assert torch.cat(variances).tolist() == pytest.approx([5.0] * 18)
    assert term.MIN_VARIANCE == 1e-5
