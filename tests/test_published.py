"""Published checkpoints and external networks as teachers."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcache.stages import train_student, train_teacher
from PIL import Image
from safetensors.torch import save_file

from kdcache import extensions
from kdcache.answers.teacher import FORWARD_BATCH_SIZE
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.models import REGISTRY, build, checkpoint
from kdcache.models.published import read
from kdcache.models.weights import load_into, most_similar_network
from tests.processes import kdcache

State = dict[str, torch.Tensor]


def state(name: str = "resnet8", classes: int = 3) -> State:
    return build(name, num_classes=classes, seed=4).body.state_dict()


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "RepDistiller": lambda state: {"epoch": 240, "model": state, "accuracy": torch.tensor(75.61)},
    "RepDistiller's best": lambda state: {
        "epoch": 201,
        "model": state,
        "best_acc": np.float64(75.61),
        "accuracy": np.float64(75.61),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.0005}]},
    },
    "with its options": lambda state: {"opt": argparse.Namespace(model="wrn_40_2", lr=0.05), "model": state},
    "mdistiller": lambda state: {"model": state, "optimizer": {}, "best_acc": 79.42, "accuracy": 79.42},
    "lightning": lambda state: {"state_dict": state, "epoch": 3},
    "parallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled and parallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("old", [True, False])
def test_every_published_layout_is_read(layout: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    torch.save(LAYOUTS[layout](state()), path, _use_new_zipfile_serialization=not old)
    found = read(path)
    network = build("resnet8", num_classes=3)
    load_into(network, found.entries, path)
    assert all(network.body.state_dict()[key].equal(value) for key, value in state().items())
    expected = {"RepDistiller": 75.61, "RepDistiller's best": 75.61, "mdistiller": 79.42}.get(layout)
    assert found.accuracy == (pytest.approx(expected, abs=1e-3) if expected else None)


def test_safetensors_of_other_projects_are_read(tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in state().items()}, tmp_path / "published.safetensors")
    assert read(tmp_path / "published.safetensors").entries[""].keys() == state().keys()


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": state(), "opt": Malice(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Malice(tmp_path / "ran")))
    for name, message in (
        ("evil.pth", r"contain code, which is not run: .*got (posix|os|nt)\.system"),
        ("bare.pth", "tensors and plain data"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            read(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "got nothing"),
    "empty": (lambda path: path.write_bytes(b""), "a complete checkpoint"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-4000]), "a complete checkpoint"),
    "text": (lambda path: path.write_text("404: not found"), "a complete checkpoint"),
    "list": (lambda path: torch.save([1], path), "a dictionary, got list"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "tensors by name, got epoch"),
}


@pytest.mark.parametrize("bad", BAD)
def test_incomplete_files_give_one_message(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    torch.save(state(), path)
    change, message = BAD[bad]
    change(path)
    with pytest.raises(UsageError, match=message) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert "published.pth" in str(caught.value)


def test_tensors_that_do_not_fit_are_listed_and_the_fitting_network_is_named() -> None:
    network = build("resnet8x4", num_classes=3)
    with pytest.raises(UsageError) as caught:
        load_into(network, {"": state("resnet32x4")}, "published.pth")
    (line,) = caught.value.problems  # resnet32x4 has all tensors of resnet8x4, in the same shapes
    assert "unknown: expected those of resnet8x4, got" in line
    assert line.endswith("and 134 more. The tensors fit resnet32x4.")
    assert line.count(",") >= 10
    with pytest.raises(UsageError, match=r"number of classes: expected 4, as in the data, got 3\."):
        load_into(build("resnet8", num_classes=4), {"": state(classes=3)}, "published.pth")
    changed = state()
    changed["fc.scale"] = changed.pop("fc.weight")
    with pytest.raises(UsageError) as caught:
        load_into(build("resnet8", num_classes=3), {"": changed}, "published.pth")
    assert [line[-9:] for line in caught.value.problems] == ["fc.weight", " fc.scale"]


@pytest.mark.parametrize("name", REGISTRY)
def test_a_network_is_found_by_its_tensors(name: str) -> None:
    with torch.device("meta"):
        found = REGISTRY[name](17).state_dict()
    assert most_similar_network({"": found}) == name


def test_other_tensors_fit_no_network() -> None:
    assert most_similar_network({"": {"a": torch.zeros(3, 3)}}) is None
    assert most_similar_network({"": {"a": torch.zeros(3)}}) is None


Settings = dict[str, Any]


@pytest.fixture(scope="module")
def published(small: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file in the format of RepDistiller, of a network trained here, and the summary of its run."""
    out = tmp_path_factory.mktemp("published")
    run = train_teacher(TeacherConfig.load(**{**small, "out": out / "run", "epochs": 2}))
    network = checkpoint.load(run.path / "model.safetensors")
    torch.save({"epoch": 2, "model": network.body.state_dict(), "accuracy": run.summary["last_top1"]}, out / "net.pth")
    return out / "net.pth", run.summary


def test_a_published_teacher_can_teach(
    published: tuple[Path, dict[str, Any]], small: Settings, pictures: Path, tmp_path: Path
) -> None:
    path, summary = published
    words = f"--dataset folder:{pictures} --image-size 32 --crop padded --device cpu --precision float32"
    done = kdcache("teacher-load", "--weights", str(path), *words.split(), "--out", "teacher", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    top1 = f"{summary['last_top1']:.2f} %"
    assert f"teacher resnet8 on folder:{pictures} -> teacher: top-1 {top1}, published as {top1}" in done.stdout
    assert "warning" not in done.stdout
    loaded = json.loads((tmp_path / "teacher" / "summary.json").read_text())["loaded"]
    assert (loaded["weights"], loaded["entry"]) == (str(path), "model")
    settings = {**small, "teacher": tmp_path / "teacher", "aug": "none", "out": tmp_path / "student"}
    assert train_student(StudentConfig.load(**settings)).summary["teacher_forwards"] == 0


def test_a_gap_to_the_published_accuracy_gives_a_warning(
    published: tuple[Path, dict[str, Any]], small: Settings, pictures: Path, tmp_path: Path
) -> None:
    document = torch.load(published[0], weights_only=True)
    torch.save({**document, "accuracy": 12.0}, tmp_path / "net.pth")
    words = f"--dataset folder:{pictures} --image-size 32 --crop padded --mean 0.1,0.2,0.3 --std 1,1,1 --device cpu"
    done = kdcache("teacher-load", "--weights", "net.pth", *words.split(), "--out", "teacher", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "published as 12.00 %" in done.stdout
    assert "warning" in done.stdout
    assert "--mean" in done.stdout
    loaded = checkpoint.load(tmp_path / "teacher" / "model.safetensors")
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def test_wrong_weights_are_refused_and_nothing_is_written(
    published: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    words = f"--dataset folder:{pictures} --image-size 32 --crop padded --device cpu --out teacher"
    for more, part in (
        (f"--weights {published[0]} --model resnet20", "The tensors fit resnet8."),
        ("--weights nowhere.pth", "nowhere.pth"),
        ("--weights IMAGENET1K_V9 --model torchvision:resnet18", "IMAGENET1K_V9"),
        (f"--weights {published[0]} --mean 1,2", "three numbers"),
        (
            f"--weights {published[0]} --mean 0,0,0 --std 1,1,0",
            "--std: expected three numbers from 0 to 1, none of them 0",
        ),
    ):
        done = kdcache("teacher-load", *more.split(), *words.split(), cwd=tmp_path)
        assert done.returncode == 2, (more, done.stderr)
        assert part in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_named_features_of_a_torchvision_network_come_from_the_same_forward_pass() -> None:
    network = build("torchvision:resnet18", num_classes=5, image_size=64, feature_names=("layer1", "layer3"), seed=1)
    images = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    for mode in (False, True):
        network.train(mode)
        logits, features = network.with_features(images)
        assert [tuple(feature.shape) for feature in features] == [(3, 64, 16, 16), (3, 256, 4, 4), (3, 512)]
        torch.testing.assert_close(network.body.fc(features[-1]), logits)
    network.eval()
    inner = {}
    hook = network.body.layer3.register_forward_hook(lambda *call: inner.update(layer3=call[-1]))
    assert network(images).equal(network.with_features(images)[0])
    hook.remove()
    assert inner["layer3"].equal(network.with_features(images)[1][1])
    sum(feature.mean() for feature in network.with_features(images)[1]).backward()  # type: ignore[union-attr]
    assert network.body.conv1.weight.grad is not None
    assert not any("extractor" in key or "traced" in key for key in network.state_dict())


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "torchvision:googlenet", "timm:convnext_atto"])
def test_external_networks_can_be_saved_and_loaded(name: str, tmp_path: Path) -> None:
    network = build(name, num_classes=5, image_size=64, seed=1).eval()
    checkpoint.save(network, tmp_path / "net.safetensors")
    loaded = checkpoint.load(tmp_path / "net.safetensors").eval()
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(network)
    images = torch.zeros(2, 3, 64, 64)
    with torch.no_grad():
        assert loaded(images).equal(network(images))


OWN = """
from torch import nn
def small(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))
def words(num_classes): return "no network"
def other(num_classes): return nn.Flatten()
"""


def test_a_users_own_network_teaches_one_of_timm(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(OWN)
    words = f"--dataset folder:{pictures} --image-size 32 --crop padded --epochs 1 --batch-size 30 --device cpu".split()
    mine = "python:mynets:small"
    taught = kdcache("teacher-train", *words, "--model", mine, "--features", "0,2", "--out", "teacher", cwd=tmp_path)
    assert taught.returncode == 0, taught.stderr
    learn = ("student-train", *words, "--teacher", "teacher", "--model", "timm:resnet10t", "--aug", "cutmix-pick")
    untrusted = kdcache(*learn, "--out", "student", cwd=tmp_path)
    assert untrusted.returncode == 2
    assert f"--trust {mine}" in untrusted.stderr
    assert not (tmp_path / "student").exists()
    learnt = kdcache("--trust", mine, *learn, "--out", "student", cwd=tmp_path)
    assert learnt.returncode == 0, learnt.stderr
    assert "student timm:resnet10t" in learnt.stdout
    for model, part in (
        ("python:mynets:words", "a torch.nn.Module, got str"),
        ("python:mynets:other", "for 2 images: expected (2, 3), got (2, 3072)"),
        ("python:mynets:nothing", "AttributeError"),
        ("python:nowhere:net", "ModuleNotFoundError"),
        ("torchvision:resnet19", "resnet18"),
        ("timm:resnet10x", "resnet10t"),
    ):
        done = kdcache("teacher-train", *words, "--model", model, "--out", "bad", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert part in done.stderr
        assert not (tmp_path / "bad").exists()
    done = kdcache("teacher-train", *words, "--model", mine, "--features", "0,9", "--out", "bad", cwd=tmp_path)
    assert done.returncode == 2
    assert "got 9" in done.stderr


def test_a_resnet34_of_torchvision_teaches_a_resnet18(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORWARD_BATCH_SIZE, "cpu", 6)  # no forward has more rows here, and all are padded
    noise, size = np.random.Generator(np.random.Philox(2)), 224
    for split, count in (("train", 2), ("val", 1)):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (size, size + 9, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.jpg")
    settings: Settings = {"dataset": f"folder:{tmp_path / 'data'}", "image_size": size, "crop": "padded"}
    settings |= {"epochs": 1, "batch_size": 2, "device": "cpu"}
    teacher = train_teacher(TeacherConfig.load(**settings, model="torchvision:resnet34", out=tmp_path / "teacher"))
    student = StudentConfig.load(
        **settings, model="torchvision:resnet18", aug="cutmix-pick", teacher=teacher.path, out=tmp_path / "student"
    )
    assert train_student(student).summary["teacher_forwards"] == 12


def test_trust_in_one_network_is_not_trust_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "_trusted", set())
    extensions.trust("python:collections:OrderedDict")
    with pytest.raises(UsageError, match="If you trust it"):
        build("python:os:system", num_classes=3)
