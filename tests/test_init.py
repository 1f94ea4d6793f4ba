"""Trainings that start from the weights of a trained network, whose classes may be others."""

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as torchvision_models
from kdcache.stages import train_student, train_teacher
from safetensors.torch import save_file

from kdcache.accuracy import evaluate
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Dataset
from kdcache.errors import KdcacheError
from kdcache.extensions import trust
from kdcache.models import REGISTRY, FeatureNet, Network, build, checkpoint
from kdcache.models.initial import head_of
from kdcache.models.load import find_network
from kdcache.run.find import weights_file
from kdcache.run.folder import FinishedRun
from kdcache.setup import fresh_network, initial_network, load_data
from kdcache.study.definition import read_study
from kdcache.study.expand import expand_study
from tests.altered_runs import Interrupt
from tests.processes import outcome
from tests.samples import refusal
from tests.studies import write_study

Settings = dict[str, Any]
State = dict[str, torch.Tensor]

HALF = (0.5, 0.5, 0.5)
THIRDS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged."""
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture(scope="module")
def two_classes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures without those of one class."""
    root = tmp_path_factory.mktemp("two")
    shutil.copytree(pictures, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("striped"))
    return root


@pytest.fixture(scope="module")
def renamed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, whose classes have other names."""
    root = tmp_path_factory.mktemp("renamed")
    shutil.copytree(pictures, root, dirs_exist_ok=True)
    for split in ("train", "val"):
        for name in os.listdir(root / split):
            (root / split / name).rename(root / split / f"very {name}")
    return root


def start(small: Settings, **changes: Any) -> tuple[Network, Network, Dataset]:
    """Build a network that starts from weights, and the one that a training without them starts from."""
    config = StudentConfig.load(**{**small, **changes})
    data = load_data(config)
    return initial_network(config, data)[0], fresh_network(config, data), data


def states(*networks: Network) -> list[State]:
    return [network.body.state_dict() for network in networks]


def source(name: str = "resnet8", classes: int = 3) -> State:
    state = build(name, num_classes=classes, seed=77).body.state_dict()
    return {key: value.contiguous() for key, value in state.items()}


def assert_taken(ours: State, given: State, fresh: State, head: set[str]) -> None:
    """Check that all tensors are those of the weights, except a head, which is that of a fresh network."""
    assert not ours["conv1.weight"].equal(fresh["conv1.weight"])
    for name, tensor in ours.items():
        assert tensor.equal((fresh if name in head else given)[name]), name


# Networks of kdcache


def test_a_student_of_a_run_starts_with_its_accuracy(
    small: Settings, teacher: Path, log: pytest.LogCaptureFixture
) -> None:
    network, fresh, data = start(small, init=str(teacher))
    found, compute = FinishedRun(teacher), Compute.choose("cpu", "float32")
    line = found.read_metrics()[-1]
    measured = evaluate(network, data.test, compute)
    assert (measured.loss, measured.top1) == (line.test_loss, line.test_top1)
    assert evaluate(fresh, data.test, compute).loss != line.test_loss
    total = len(network.body.state_dict())
    assert f"init: {total} of {total} tensors of {found.network_file}; with the head, whose classes are the" in log.text


LAYOUTS: dict[str, Callable[[State, Path], object]] = {
    "plain": torch.save,
    "RepDistiller": lambda state, path: torch.save({"epoch": 240, "model": state, "accuracy": 75.6}, path),
    "parallel": lambda state, path: torch.save({f"module.{key}": value for key, value in state.items()}, path),
    "safetensors": save_file,
    "kdcache": lambda state, path: checkpoint.save(build("resnet8", num_classes=3, seed=77), path),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_for_other_classes_has_a_new_head(
    layout: str, small: Settings, two_classes: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "net.pth"
    LAYOUTS[layout](source(), path)
    for seed in (1, 2):
        network, fresh, _ = start(small, dataset=f"folder:{two_classes}", init=str(path), seed=seed)
        assert_taken(*states(network), source(), *states(fresh), {"fc.weight", "fc.bias"})
    total = len(source())
    assert f"init: {total - 2} of {total} tensors of {path}; new head: 3 classes to 2" in log.text


def test_the_head_is_taken_if_the_classes_may_be_the_same(
    small: Settings, renamed: Path, teacher: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    other = {"dataset": f"folder:{renamed}"}
    network, fresh, _ = start(small, **other, init=str(teacher))
    taken = checkpoint.load(teacher / "model.safetensors").body.state_dict()
    assert_taken(*states(network), taken, *states(fresh), {"fc.weight", "fc.bias"})
    assert "new head: other classes" in log.text
    torch.save(source(), tmp_path / "net.pth")
    network, fresh, _ = start(small, **other, init=str(tmp_path / "net.pth"))
    assert_taken(*states(network), source(), *states(fresh), set())
    assert "with the head, whose classes are taken to be those of the data in their order" in log.text


def test_weights_without_a_head_are_taken(small: Settings, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    torch.save({key: value for key, value in source().items() if not key.startswith("fc.")}, tmp_path / "net.pth")
    network, fresh, _ = start(small, init=str(tmp_path / "net.pth"))
    assert_taken(*states(network), source(), *states(fresh), {"fc.weight", "fc.bias"})
    assert "new head: the weights have none" in log.text


def test_a_student_is_trained_from_weights_and_its_normalization_is_theirs(
    small: Settings, two_classes: Path, tmp_path: Path
) -> None:
    checkpoint.save(build("resnet8", num_classes=3, seed=77, mean=HALF, std=THIRDS[1]), tmp_path / "net.safetensors")
    settings = {**small, "dataset": f"folder:{two_classes}", "loss": "ce", "aug": "none", "lr": 1e-9, "momentum": 0}
    run = train_student(StudentConfig.load(**settings, init=str(tmp_path / "net.safetensors"), out=tmp_path / "run"))
    network = checkpoint.load(run.path / "model.safetensors")
    assert (network.mean, network.std) == (HALF, THIRDS[1])
    torch.testing.assert_close(network.body.conv1.weight, source()["conv1.weight"], rtol=0, atol=1e-6)
    assert run.config.init == str(tmp_path / "net.safetensors")
    assert {"init"} <= run.read_environment()["origin"].keys()


@pytest.mark.parametrize("name", REGISTRY)
def test_the_head_of_a_network_is_its_classifier(name: str) -> None:
    with torch.device("meta"):
        body = REGISTRY[name](7)
    assert isinstance(body, FeatureNet)
    names = {id(tensor): key for key, tensor in body.state_dict(keep_vars=True).items()}
    assert head_of(name, 7, 32) == {names[id(parameter)]: 0 for parameter in body.head.parameters()}


# Other libraries


HEADS = {
    "torchvision:squeezenet1_1": "classifier.1",
    "torchvision:mobilenet_v3_small": "classifier.3",
    "torchvision:googlenet": "fc",
    "torchvision:vit_b_16": "heads.head",
    "timm:test_vit": "head",
    "timm:test_byobnet": "head.fc",
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_of_another_library_is_found(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    assert head_of(name, 4, 64) == {f"{HEADS[name]}.weight": 0, f"{HEADS[name]}.bias": 0}


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache folder, empty, and no access to the Internet."""

    def fail(url: str, *_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_weights_of_torchvision_are_found_by_name(
    small: Settings, torch_home: Path, log: pytest.LogCaptureFixture
) -> None:
    entry = torchvision_models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    given = source("torchvision:shufflenet_v2_x0_5", 1000)
    torch.save(given, torch_home / entry.url.rsplit("/", 1)[1])
    for name in ("IMAGENET1K_V1", "DEFAULT"):
        network, fresh, _ = start(small, model="torchvision:shufflenet_v2_x0_5", init=name)
        (ours, own), head = states(network, fresh), {"fc.weight", "fc.bias"}
        assert all(tensor.equal((own if key in head else given)[key]) for key, tensor in ours.items())
        assert f"init: {len(given) - 2} of {len(given)} tensors of {name}; new head: 1000 classes to 3" in log.text
    assert "std (0.229, 0.224, 0.225), from torchvision for ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1" in log.text


def test_nothing_is_downloaded_because_a_file_says_so(
    small: Settings, torch_home: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('init = "IMAGENET1K_V1"\nmodel = "torchvision:shufflenet_v2_x0_5"\n')
    given = {key: value for key, value in small.items() if key != "model"}

    def begin(**more: Any) -> None:
        config = TeacherConfig.load(file, **given, **more)
        initial_network(config, load_data(config))

    assert "would be downloaded. Add --download, or name" in refusal(begin)
    for allowed in ({"download": True}, {"init": "IMAGENET1K_V1"}):
        message = refusal(lambda allowed=allowed: begin(**allowed), KdcacheError)  # type: ignore[misc]
        assert "could not download https://download.pytorch.org/" in message
        assert "got Name or service not known. Without a network connection, copy a file" in message
        assert (
            "weights of torchvision:shufflenet_v2_x0_5 to this machine, and give its path instead of IMAGE" in message
        )
        assert "downloading weights IMAGENET1K_V1 of torchvision:" in log.text


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> State:
    """The weights that timm gets from the hub; an error while this is empty."""
    builder = pytest.importorskip("timm.models._builder")
    weights: State = {}

    def load(repository: str, *_: object, **__: object) -> State:
        if not weights:
            raise OSError(f"no access to {repository}")
        return dict(weights)

    monkeypatch.setattr(builder, "load_state_dict_from_hf", load)
    return weights


def test_weights_of_timm_are_found_by_tag(small: Settings, hub: State, log: pytest.LogCaptureFixture) -> None:
    hub |= source("timm:test_resnet", 1000)
    ways = ("test_resnet", "pretrained"), ("test_resnet", "r160_in1k"), ("test_resnet.r160_in1k", "pretrained")
    for name, init in ways:
        network, fresh, _ = start(small, model=f"timm:{name}", init=init)
        (ours, own), head = states(network, fresh), {"fc.weight", "fc.bias"}
        assert all(tensor.equal((own if key in head else hub)[key]) for key, tensor in ours.items())
        assert (network.mean, network.std) == (HALF, HALF)
        assert f"tensors of {init}; new head: 1000 classes to 3" in log.text
    assert "from timm for test_resnet.r160_in1k" in log.text
    assert "loading weights r160_in1k of timm:test_resnet, which are downloaded if" in log.text


def test_a_missing_library_is_named_before_the_images_are_read(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    given = {**small, "dataset": f"folder:{tmp_path}/nowhere", "model": "timm:test_resnet", "out": tmp_path / "run"}
    for train in (
        lambda: train_teacher(TeacherConfig.load(**given)),
        lambda: train_student(StudentConfig.load(**given, loss="ce")),
    ):
        assert "timm is not installed. Run pip install" in refusal(train)


def test_names_that_timm_does_not_have_are_refused(small: Settings, hub: State, tmp_path: Path) -> None:
    model = {"model": "timm:test_resnet"}
    message = refusal(lambda: start(small, **model, init="a1_in1k"))
    assert message == "weights of timm:test_resnet: expected a file, or one of pretrained, r160_in1k, got a1_in1k"
    message = refusal(lambda: start(small, model="timm:resnet18", init="a2_in1k"), KdcacheError)
    assert "got no access to timm/resnet18.a2_in1k. Without a network connection, copy a file" in message
    assert "weights of timm:resnet18 to this machine, and give its path instead of a2_in1k; with weights of " in message
    config = StudentConfig(**{**small, **model}, init="pretrained")
    assert "Add --download" in refusal(lambda: initial_network(config, load_data(config)))


OWN = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def fixed(num_classes):
    return small(3)
"""


def test_a_network_of_the_users_own_starts_from_a_file(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "initnets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"model": "python:initnets:small"}
    trust(own["model"])
    body = build(own["model"], num_classes=5, seed=3).body
    torch.save(body.state_dict(), tmp_path / "net.pth")
    network, fresh, _ = start(small, **own, init=str(tmp_path / "net.pth"))
    assert network.body[0].weight.equal(body[0].weight)
    assert network.body[3].weight.equal(fresh.body[3].weight)
    assert "2 of 4 tensors" in log.text
    assert "Networks of torchvision and timm alone" in refusal(lambda: start(small, **own, init="pretrained"))
    fixed = {"model": "python:initnets:fixed"}  # for three classes alone
    assert "of another shape or type: 3.bias" in refusal(lambda: start(small, **fixed, init=str(tmp_path / "net.pth")))
    torch.save(fresh.body.state_dict(), tmp_path / "net.pth")
    assert start(small, **fixed, init=str(tmp_path / "net.pth"), seed=9)[0].body[3].weight.equal(fresh.body[3].weight)
    assert "4 of 4 tensors" in log.text


# What is refused


def test_other_weights_are_refused(small: Settings, two_classes: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(source("resnet20", 1000), path)
    message = refusal(lambda: start(small, init=str(path)))
    assert message.startswith(f"--init {path}: tensors: expected those of resnet8, got unknown: ")
    assert message.endswith("more. The tensors fit resnet20.")
    other = {"model": "torchvision:shufflenet_v2_x0_5"}
    message = refusal(lambda: start(small, **other, init=str(path)))
    assert "missing: " in message
    assert "unknown: " in message
    wide = source()
    wide |= {"fc.weight": torch.zeros(1000, 65), "fc.bias": torch.zeros(1000)}
    torch.save(wide, path)
    assert "of another shape or type: fc.bias, fc.weight" in refusal(lambda: start(small, init=str(path)))
    assert "expected a file, got nothing. Networks of" in refusal(lambda: start(small, init="IMAGENET1K_V1"))
    assert "or one of IMAGENET1K_V1, DEFAULT, got V9" in refusal(lambda: start(small, **other, init="V9"))
    torch.save({"a": source(), "b": source()}, path)
    assert "Save the one to start from in a file of its own." in refusal(lambda: start(small, init=str(path)))
    names = [f"blocks.{block}.{name}" for block in range(3) for name in ("conv1.weight", "bn1.weight", "bn1.bias")]
    torch.save({name: torch.zeros(4) for name in names}, path)  # another network, with some names of this one's
    message = refusal(lambda: start(small, init=str(path)))
    assert message.startswith(f"--init {path}: tensors: expected those of resnet8, got missing: ")
    assert message.endswith("Name the network that they are of with --model, and its --image-size if that is fixed.")


def test_loading_a_teacher_of_other_classes_names_init(
    small: Settings, two_classes: Path, renamed: Path, teacher: Path, tmp_path: Path
) -> None:
    torch.save({"model": source(), "classes": ["bright", "dark", "striped"]}, tmp_path / "net.pth")
    for folder in (two_classes, renamed):
        data = load_data(TeacherConfig.load(**{**small, "dataset": f"folder:{folder}"}))
        for weights in (tmp_path / "net.pth", teacher / "model.safetensors"):
            message = refusal(lambda data=data, weights=weights: find_network(weights, data))  # type: ignore[misc]
            assert message.endswith(f"kdcache teacher-train --init {weights}.")


def test_a_run_has_a_network_and_does_not_overwrite_it(small: Settings, teacher: Path, tmp_path: Path) -> None:
    assert weights_file(str(teacher)) == str(teacher / "model.safetensors")
    (tmp_path / "run").mkdir()
    shutil.copy(teacher / "config.toml", tmp_path / "run")
    assert "expected a run with a network" in refusal(lambda: weights_file(str(tmp_path / "run")))
    config = TeacherConfig.load(**small, init=str(teacher), out=teacher, overwrite=True)
    assert "expected weights outside of --out" in refusal(lambda: train_teacher(config))


# Resuming


def test_a_run_is_resumed_without_its_initial_weights(small: Settings, two_classes: Path, tmp_path: Path) -> None:
    weights, moved = tmp_path / "net.safetensors", tmp_path / "moved.safetensors"
    checkpoint.save(build("resnet8", num_classes=3, seed=77, mean=THIRDS[0], std=THIRDS[1]), weights)
    often = {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 1e-6, "workers": 0}
    settings = {**small, **often, "dataset": f"folder:{two_classes}", "init": str(weights)}
    with suppress(InterruptedError):
        train_teacher(TeacherConfig.load(**settings, out=tmp_path / "run"), Interrupt())
    whole = train_teacher(TeacherConfig.load(**settings, out=tmp_path / "whole"))
    started = tmp_path / "started"
    shutil.copytree(tmp_path / "run", started, ignore=shutil.ignore_patterns("checkpoints", "m*"))
    weights.rename(moved)

    other = TeacherConfig.load(**{**settings, "init": str(moved)}, out=tmp_path / "run", resume=True)
    assert f"--init: expected {weights}, as in the run, got {moved}" in refusal(lambda: train_teacher(other))
    resumed = train_teacher(TeacherConfig.load(out=tmp_path / "run", resume=True))
    assert resumed.summary["resumed"]
    assert outcome(resumed.path) == outcome(whole.path)

    again = TeacherConfig.load(out=started, resume=True)  # a run that was killed before its first checkpoint
    assert "expected a file, got nothing" in refusal(lambda: train_teacher(again))
    checkpoint.save(build("resnet8", num_classes=3, seed=78, mean=THIRDS[0], std=THIRDS[1]), weights)
    assert f"run folder {started}: init: expected " in refusal(lambda: train_teacher(again))
    weights.unlink()
    moved.rename(weights)
    assert outcome(train_teacher(again).path) == outcome(whole.path)


# Studies


def test_runs_of_a_study_with_other_weights_have_other_names(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, pictures)
    study = tmp_path / "four.toml"
    for name in ("a", "b"):
        torch.save(source() if name == "a" else source("resnet8", 4), f"{name}.pth")
    rows = [f'[[rows]]\nname = "{name}"\nsettings = {{ loss = "kd", init = "{name}.pth" }}\n' for name in ("a", "b")]
    study.write_text(study.read_text() + "".join(rows))
    cells = expand_study(read_study(str(study)), "own", tmp_path)
    names = [run.path.name for cell in cells for run in cell.runs]
    assert len(set(names)) == len(names)
    digests = [hashlib.sha256(Path(name).read_bytes()).hexdigest()[:8] for name in ("a.pth", "b.pth")]
    assert [name for name in names if "init" in name] == [
        f"resnet8-resnet8-kd-standard-init-{digest}-4epochs-seed0" for digest in digests
    ]
