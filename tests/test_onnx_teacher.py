"""ONNX files as teachers: their logits are those of the network that was exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages import train_student
from kdcache.stages.teacher import load_teacher
from torch import Tensor, nn

import kdcache
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.models import checkpoint
from kdcache.models.export import export as export_network
from kdcache.run.folder import FinishedRun
from tests.samples import refusal

pytest.importorskip("onnxscript")
Settings = dict[str, Any]


class WithSoftmax(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).softmax(1)


def export(network: nn.Module, path: Path, images: Tensor, **options: Any) -> Path:
    torch.onnx.export(network.eval(), (images,), path, dynamo=True, external_data=False, verbose=False, **options)
    return path


@pytest.fixture(scope="module")
def files(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The teacher's network in ONNX: of normalized images, of pixels, as probabilities, and for 5 images at a time."""
    network, folder = checkpoint.load(FinishedRun(teacher).network_file).eval(), tmp_path_factory.mktemp("onnx")
    images = torch.rand(5, 3, 32, 32)
    dynamic: Settings = {"dynamic_shapes": {"images": {0: torch.export.Dim("batch")}}, "input_names": ["images"]}
    return {
        "normalized": export(network.body, folder / "normalized.onnx", images, **dynamic),
        "pixels": export(network, folder / "pixels.onnx", (255 * images).byte(), **dynamic),
        "probabilities": export(WithSoftmax(network.body), folder / "probabilities.onnx", images, **dynamic),
        "fixed": export(network.body, folder / "fixed.onnx", images),
    }


def loaded(small: Settings, file: Path, out: Path, **options: Any) -> FinishedRun:
    images = {name: small[name] for name in ("dataset", "image_size", "crop", "device", "precision")}
    return load_teacher(file, TeacherConfig.load(**images, out=out), **options)


@pytest.mark.parametrize("form", ["normalized", "pixels", "probabilities", "fixed"])
def test_the_logits_are_those_of_the_exported_network(
    form: str, files: dict[str, Path], teacher: Path, small: Settings, tmp_path: Path
) -> None:
    original = checkpoint.load(FinishedRun(teacher).network_file).eval()
    options = {} if form == "pixels" else {"mean": original.mean, "std": original.std}
    run = loaded(small, files[form], tmp_path / "run", **options)
    network = checkpoint.load(run.network_file).eval()
    images = torch.randint(0, 256, (13, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = original(images), network(images)
    if form == "probabilities":  # logits are known up to a number for each row
        expected, found = expected.log_softmax(1), found.log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert run.read_environment()["origin"]["dataset"] == FinishedRun(teacher).read_environment()["origin"]["dataset"]


def test_a_student_learns_from_an_onnx_file_as_from_its_original(
    files: dict[str, Path], teacher: Path, small: Settings, tmp_path: Path
) -> None:
    run = loaded(small, files["pixels"], tmp_path / "onnx")
    students = []
    for number, path in enumerate((run.path, run.path, teacher)):
        settings = {**small, "teacher": path, "aug": "cutmix", "seed": 3, "out": tmp_path / f"student{number}"}
        students.append(train_student(StudentConfig.load(**settings)))
    assert students[0].summary["teacher_forwards"] > 0 == students[1].summary["teacher_forwards"]
    losses = [student.read_metrics()[-1].train_loss for student in students]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-3)


def test_another_file_has_another_fingerprint(files: dict[str, Path], small: Settings, tmp_path: Path) -> None:
    runs = [loaded(small, files[form], tmp_path / form) for form in ("normalized", "fixed")]
    fingerprints = {checkpoint.fingerprint(checkpoint.load(run.network_file)) for run in runs}
    assert len(fingerprints) == 2


def test_what_is_no_such_network_is_refused(
    files: dict[str, Path], teacher: Path, small: Settings, tmp_path: Path
) -> None:
    network = checkpoint.load(FinishedRun(teacher).network_file).body
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(files["pixels"].read_bytes()[:2000])
    outside = tmp_path / "outside.onnx"
    torch.onnx.export(network, (torch.rand(5, 3, 32, 32),), outside, dynamo=True, external_data=True, verbose=False)
    five = kdcache.build_network("resnet8", num_classes=5, seed=0).body
    other = export(five, tmp_path / "five.onnx", torch.rand(5, 3, 32, 32))
    large = export(network, tmp_path / "large.onnx", torch.rand(5, 3, 48, 48))
    cases: dict[str, tuple[Path, Settings]] = {
        "expected an ONNX file": (truncated, {}),
        "expected its weights in it, got in other files": (outside, {}),
        "output of": (other, {}),
        "fail on 32x32 images": (large, {}),
        "normalizes them itself": (files["pixels"], {"mean": (0.5, 0.5, 0.5)}),
        "expected no --model": (files["pixels"], {"model": "resnet8"}),
    }
    for message, (file, options) in cases.items():
        assert message in refusal(
            lambda file=file, options=options: loaded(small, file, tmp_path / "run", **options)
        ), message
    assert not (tmp_path / "run").exists()
    run = loaded(small, files["pixels"], tmp_path / "onnx")
    network = checkpoint.load(run.network_file)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    message = refusal(lambda: export_network(network, "onnx", tmp_path / "again.onnx", images))
    assert message.startswith("network to export: expected one of torch, got onnx:")
    assert "expected a network of torch" in refusal(network.check_features)
    settings = {**small, "model": run.config.model, "loss": "ce", "out": tmp_path / "student"}
    assert "one with weights to train" in refusal(lambda: train_student(StudentConfig.load(**settings)))
