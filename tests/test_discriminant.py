"""A last layer in closed form: its formula, and teachers whose weights have no classes or others."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kdcache.stages import train_student
from kdcache.stages.teacher import load_teacher

from kdcache import models
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.discriminant import LinearDiscriminant
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import checkpoint
from tests.samples import refusal


def fitted(vectors: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = LinearDiscriminant(classes, vectors.shape[1])
    for part in torch.arange(len(vectors)).split(37):
        found.add(vectors[part], labels[part])
    return found.solve()


def test_logits_are_those_of_gaussian_classes_with_one_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30_000) % 4 % 3  # the first class has twice as many
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.5]])
    means = torch.tensor([[0.0, 0.0], [1.0, -1.0], [2.0, 1.0]])
    vectors = means[labels] + torch.randn(30_000, 2, generator=generator) @ mixing.T
    weight, bias = fitted(vectors, labels, 3)
    shares = torch.tensor([0.5, 0.25, 0.25])
    points = torch.tensor([[0.3, -0.2], [1.5, 0.4], [-1.0, 2.0]])
    normal = torch.distributions.MultivariateNormal(means, scale_tril=mixing)
    expected = (normal.log_prob(points[:, None]) + shares.log()).log_softmax(1)
    torch.testing.assert_close((points @ weight.T + bias).log_softmax(1), expected, rtol=0.05, atol=0.15)


def test_fewer_vectors_than_dimensions_are_enough_and_their_order_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 4
    vectors = torch.randn(4, 200, generator=generator)[labels] + torch.randn(40, 200, generator=generator)
    weight, bias = fitted(vectors, labels, 4)
    test = torch.randn(4, 200, generator=torch.Generator().manual_seed(1))
    assert (test @ weight.T + bias).argmax(1).tolist() == [0, 1, 2, 3]
    again = fitted(vectors.flip(0), labels.flip(0), 4)
    torch.testing.assert_close(again, (weight, bias), rtol=1e-4, atol=1e-5)
    assert all(tensor.isfinite().all() for tensor in fitted(vectors[:, :1], labels, 4))


def test_images_that_do_not_determine_a_layer_are_refused() -> None:
    with pytest.raises(UsageError, match=r"images of all 3 classes.*got 4 images of 2 classes"):
        fitted(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), 3)
    with pytest.raises(UsageError, match="more than one of some, got 2 images"):
        fitted(torch.randn(2, 2), torch.tensor([0, 1]), 2)
    with pytest.raises(KdcacheError, match="expected vectors that differ, got the same vector"):
        fitted(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), 2)
    with pytest.raises(KdcacheError, match="not finite"):
        fitted(torch.full((4, 2), torch.inf), torch.tensor([0, 0, 1, 1]), 2)


def test_a_network_without_classes_teaches(
    small: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = models.build("resnet8", num_classes=7, seed=1)
    tensors = {name: value for name, value in own.body.state_dict().items() if not name.startswith("fc.")}
    torch.save(tensors, tmp_path / "backbone.pth")
    config = TeacherConfig.load(**{**small, "out": tmp_path / "teacher"})
    run = load_teacher(tmp_path / "backbone.pth", config, "resnet8", fit_head=True)
    assert run.summary["last_top1"] > 60  # of three classes; the layers before are random
    assert run.summary["loaded"]["head"] == "a linear discriminant of 90 training images"
    assert "new head: a linear discriminant of" in caplog.text
    loaded = checkpoint.load(run.network_file)
    assert all(loaded.body.state_dict()[name].equal(value) for name, value in tensors.items())
    student = {**small, "teacher": run.path, "loss": "embed:5", "aug": "cutmix", "epochs": 2, "lr": 0.05}
    lines = train_student(StudentConfig.load(**student, out=tmp_path / "student")).read_metrics()
    assert lines[-1].loss_parts["embed"] < lines[0].loss_parts["embed"]
    again = load_teacher(run.network_file, TeacherConfig.load(**{**small, "out": tmp_path / "again"}), fit_head=True)
    torch.testing.assert_close(
        checkpoint.load(again.network_file).linear_head().weight, loaded.linear_head().weight, rtol=1e-4, atol=1e-4
    )


def test_what_has_no_effect_or_no_name_is_refused(small: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "some.pth")
    config = TeacherConfig.load(**{**small, "out": tmp_path / "run"})
    found = refusal(lambda: load_teacher(tmp_path / "some.pth", config, fit_head=True))
    assert found == "--fit-head: expected the network's name with --model, got none"
    found = refusal(
        lambda: load_teacher(tmp_path / "some.pth", config, "resnet8", class_order="natural", fit_head=True)
    )
    assert "expected no --mean, --std, --weights-entry and --class-order" in found
    found = refusal(lambda: load_teacher(tmp_path / "some.pth", config, "resnet8", fit_head=True))
    assert found.startswith(f"--weights {tmp_path / 'some.pth'}: tensors: expected those of resnet8")
    assert not (tmp_path / "run").exists()
    assert "--fit-head" in CliRunner().invoke(cli, ["teacher-load", "--help"]).output
