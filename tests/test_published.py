"""Published checkpoints, external networks, and exported files."""

import argparse
import dataclasses
import importlib.util
import io
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcache.stages import train_student, train_teacher
from kdcache.stages.teacher import load_teacher
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kdcache import __version__, extensions, setup, training
from kdcache.analysis import cost
from kdcache.answers.teacher import FORWARD_BATCH_SIZE
from kdcache.choices import EXPORT_FORMATS, MODELS
from kdcache.cli import cli
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import REGISTRY, Network, build, checkpoint, export_formats
from kdcache.models.export import export, random_images
from kdcache.models.export_formats import OPSET, Save
from kdcache.models.predictor import load_predictor
from kdcache.models.published import read
from kdcache.models.sizes import model_sizes, size_of
from kdcache.models.sources import shipped_teacher
from kdcache.models.weights import load_into, most_similar_network
from kdcache.run.folder import FinishedRun
from kdcache.setup import load_data
from tests.processes import kdcache
from tests.samples import noise, refusal

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


@pytest.mark.parametrize("size", [64, 224])
def test_a_resnet34_of_torchvision_teaches_a_resnet18(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORWARD_BATCH_SIZE, "cpu", 9)  # no forward has more rows here, and all are padded
    noise = np.random.Generator(np.random.Philox(2))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = noise.integers(0, 256, (size, size + 9, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.jpg")
    settings: Settings = {"dataset": f"folder:{tmp_path / 'data'}", "image_size": size, "crop": "padded"}
    settings |= {"epochs": 1, "batch_size": 3, "device": "cpu"}
    teacher = train_teacher(TeacherConfig.load(**settings, model="torchvision:resnet34", out=tmp_path / "teacher"))
    student = StudentConfig.load(
        **settings, model="torchvision:resnet18", aug="cutmix-pick", teacher=teacher.path, out=tmp_path / "student"
    )
    assert train_student(student).summary["teacher_forwards"] == 18


@pytest.fixture(scope="module")
def mini_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the shipped teacher, whose predictions are right, with logits of few training images."""
    config = TeacherConfig.load(out=tmp_path_factory.mktemp("mini") / "run", device="cpu", train_fraction=0.02)
    return load_teacher(shipped_teacher(), config).path


def test_the_shipped_teacher_is_as_accurate_as_its_card_states(mini_run: Path) -> None:
    card = (Path(__file__).parents[1] / "data" / "fashion-mini-teacher.md").read_text("utf-8")
    found = re.search(r"top-1 (\d\d\.\d\d) %", card)
    assert found is not None
    top1 = FinishedRun(mini_run).summary["last_top1"]
    assert top1 >= 91
    # The card states the accuracy in bfloat16.
    assert abs(top1 - float(found[1])) < 0.2
    assert checkpoint.fingerprint(checkpoint.load(shipped_teacher())) in card


@pytest.fixture(scope="module")
def exported(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported network, in a file that is called after its format."""
    folder = tmp_path_factory.mktemp("exported")
    for format, row in EXPORT_FORMATS.items():
        if row.extra is None or importlib.util.find_spec(row.extra) is not None:
            words = ["export", str(mini_run), "--format", format, "--out", str(folder / format)]
            cli.main(words, standalone_mode=False)
    return folder


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_an_exported_network_predicts_the_same_classes(format: str, mini_run: Path, exported: Path) -> None:
    """Compare the accuracy on 1,000 test images with the run's own evaluation."""
    network, path = checkpoint.load(mini_run / "model.safetensors").eval(), exported / format
    data = load_data(TeacherConfig.load())
    images, labels = data.test.images[:1000], data.test.labels[:1000]
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path)
        probabilities = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        stated = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
        assert stated["versions"] == {"kdcache": __version__, "torch": torch.__version__}
        assert stated["opset"] == OPSET
        assert stated["input"] == "images, uint8 (batch, 3, 32, 32), RGB, 0 to 255, a batch of any size"
    elif format == "openvino":
        openvino = pytest.importorskip("openvino")
        read = openvino.Core().read_model(path / "model.xml")
        assert str(read.inputs[0].partial_shape) == "[?,3,32,32]"
        assert (read.inputs[0].any_name, read.outputs[0].any_name) == ("images", "probabilities")
        stated = {name: json.loads(value) for name, value in read.get_rt_info(["kdcache"]).value.items()}
        compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        probabilities = torch.from_numpy(compiled(images.numpy())[0])
    elif format == "torch-export":
        stated = dict.fromkeys(("class_names", "image_size", "mean", "verification"), "")
        probabilities = torch.export.load(path, extra_files=stated).module()(images)
        stated = {name: json.loads(text) for name, text in stated.items()}
    else:
        stated = checkpoint.metadata(path)
        with torch.inference_mode():
            probabilities = checkpoint.load(path).eval()(images).softmax(1)
    assert (stated["class_names"], stated["image_size"]) == (list(data.class_names), 32)
    verification = stated["verification"]
    assert (verification["images"], verification["of"]) == (64, "test images")
    assert 0 <= verification["largest_difference"] < 1e-5
    assert stated["mean"] == pytest.approx(network.mean)
    assert probabilities.sum(1).sub(1).abs().max() < 1e-5
    with torch.inference_mode():
        assert probabilities.argmax(1).equal(network(images).argmax(1))
    split = type(data.test)(images, labels)
    accuracy = training.evaluate(network, split, Compute(torch.device("cpu"), "float32"))
    assert 100 * (probabilities.argmax(1) == labels).double().mean().item() == pytest.approx(accuracy.top1)


def test_an_onnx_file_has_operators_that_other_tools_know(exported: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported / "onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    layers = {"Conv", "Relu", "Add", "ReduceMean", "Reshape", "Gemm"}
    assert {node.op_type for node in model.graph.node} == {"Cast", "Mul", *layers, "Softmax"}


@pytest.fixture(scope="module")
def bundle(mini_run: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that is measured on 100 test images, without another export in float32."""
    pytest.importorskip("onnxruntime")
    data, folder = load_data(TeacherConfig.load()), tmp_path_factory.mktemp("bundles") / "phone"
    part = dataclasses.replace(data, test=data.test.part(np.arange(100)))

    def copy(network: Network, images: torch.Tensor) -> Save:
        return lambda path, facts: shutil.copyfile(exported / "onnx", path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_formats, "build_onnx", copy)
        patch.setattr(setup, "load_run_data", lambda *_, **__: part)
        patch.setattr(cost, "MIN_SECONDS", 0)
        cli.main(["export", str(mini_run), "--out", f"{folder}/"], standalone_mode=False)
    return folder


def test_a_bundle_answers_without_kdcache_and_torch(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(50, 70)).save(tmp_path / "picture.png")
    script = """
import runpy, sys
sys.modules.update(kdcache=None, torch=None)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    words = [sys.executable, "-c", script, bundle / "predict.py"]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout.count("as expected")) == (0, 2), checked.stderr
    for model in ("model.onnx", "model-int8.onnx"):
        given = ["--model", bundle / model, tmp_path / "picture.png", tmp_path / "none.png"]
        done = subprocess.run([*words, *given], capture_output=True, text=True, check=False)
        own = kdcache("predict", str(bundle / model), "picture.png", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, f"{tmp_path}/{own.stdout}")
        assert "none.png" in done.stderr


def test_a_bundle_states_what_its_networks_can_do(bundle: Path, mini_run: Path) -> None:
    data = load_data(TeacherConfig.load())
    assert (bundle / "labels.txt").read_text("utf-8").splitlines() == list(data.class_names)
    page = (bundle / "README.md").read_text("utf-8")
    for name, precision in (("model.onnx", "float32"), ("model-int8.onnx", "int8")):
        right = load_predictor(bundle / name).probabilities(data.test.images[:100]).argmax(1) == data.test.labels[:100]
        assert f"| `{name}` | {precision} | {int(right.sum())}.00 % | {(bundle / name).stat().st_size:,} |" in page
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle / "model-int8.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    stated = ({entry.key for entry in one.metadata_props} for one in (onnx.load(bundle / "model.onnx"), model))
    assert [keys & {"class_names", "verification"} for keys in stated] == [
        {"class_names", "verification"},
        {"class_names"},
    ]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    makers = {node.output[0]: node for node in model.graph.node}
    for node in convolutions:
        quantized, scale, _ = makers[node.input[1]].input
        assert weights[quantized].data_type == onnx.TensorProto.INT8
        assert list(weights[scale].dims) == [weights[quantized].dims[0]]


def test_probabilities_in_int8_are_not_quantized(bundle: Path) -> None:
    predictor = load_predictor(bundle / "model-int8.onnx")
    found = predictor.probabilities(load_data(TeacherConfig.load()).test.images[:20])
    assert found.sum(1).tolist() == pytest.approx([1] * 20, abs=1e-5)
    assert (found > 0).all()
    steps = 256 * found
    assert (steps - steps.round()).abs().max() > 0.1
    onnx = pytest.importorskip("onnx")
    nodes = onnx.load(bundle / "model-int8.onnx").graph.node
    (softmax,) = [node for node in nodes if node.op_type == "Softmax"]
    makers = {node.output[0]: node.op_type for node in nodes}
    assert makers[softmax.input[0]] == "Gemm"
    (first,) = [node for node in nodes if node.input[0] == "images"]
    readers = [node.op_type for node in nodes if first.output[0] in node.input]
    assert first.op_type == "Cast"
    assert "QuantizeLinear" not in readers


def test_bad_pictures_do_not_end_the_script_of_a_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(bundle / "predict.py"))
    image = io.BytesIO()
    Image.fromarray(noise(50, 70)).save(image, "PNG")
    good, broken, thin = (tmp_path / f"{name}.png" for name in ("good", "broken", "thin"))
    good.write_bytes(image.getvalue())
    length = image.getvalue().index(b"IDAT") - 4
    broken.write_bytes(image.getvalue()[:length] + b"\0\0\0\x20" + image.getvalue()[length + 4 :])  # a short chunk
    with pytest.raises(SyntaxError), Image.open(broken) as picture:
        picture.load()
    Image.new("RGB", (1, 100_000)).save(thin)
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, (broken, thin, good))])
    monkeypatch.setitem(script["main"].__globals__, "MAX_PIXELS", 100_000)
    assert script["main"]() == 1
    output = capsys.readouterr()
    assert output.out.startswith(f"{good}: ")
    assert "broken.png" in output.err
    assert "thin.png: its shape takes" in output.err


def test_a_bundle_is_calibrated_without_the_teacher(pictures: Path, tmp_path: Path) -> None:
    from kdcache.bundle.quantize import calibration_plan  # imports onnxruntime

    places = {"dataset": f"folder:{pictures}", "image_size": 32, "teacher": tmp_path / "gone"}
    config = StudentConfig.load(**places)
    plan, note = calibration_plan(config, load_data(config))
    assert plan.image_size == 32
    assert note is not None
    assert str(tmp_path / "gone") in note


def test_an_export_says_on_which_images_it_was_compared(
    mini_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(mini_run), "--out", str(tmp_path / "net.safetensors")]
    cli.main(words, standalone_mode=False)
    output = capsys.readouterr().out
    assert output.startswith(f"{tmp_path}/net.safetensors: safetensors, input ")
    assert "its probabilities of 64 test images differ from the run's by at most " in output
    with pytest.raises(UsageError):
        cli.main([*words, "--dataset", f"folder:{tmp_path / 'gone'}"], standalone_mode=False)

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("the images are gone")

    monkeypatch.setattr(setup, "load_run_data", refuse)
    cli.main(words, standalone_mode=False)
    output = capsys.readouterr()
    assert "64 random images" in output.out
    assert "the images are gone" in output.err


def test_the_name_of_an_exported_file_says_its_format(mini_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    bundles: list[Path] = []
    monkeypatch.setattr("kdcache.cli.models._export_bundle", lambda run, file, path, *_: bundles.append(path))

    def export_to(name: str) -> None:
        cli.main(["export", str(mini_run), "--out", f"{tmp_path}/{name}"], standalone_mode=False)

    for name in ("phone", "phone/", "phone.v2/"):
        export_to(name)
    assert bundles == [tmp_path / "phone", tmp_path / "phone", tmp_path / "phone.v2"]
    message = refusal(lambda: export_to("phone.v2"))
    expected = "a folder, or a file that ends with one of .safetensors, .onnx, .pt2"
    assert message == f"--out: expected {expected}, got {tmp_path}/phone.v2. Name its --format."
    export_to("phone.pt2")
    assert torch.export.load(tmp_path / "phone.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["phone.pt2"]


def test_a_format_whose_package_is_missing_names_it(
    mini_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ["export", str(mini_run), "--format", "openvino", "--out", str(tmp_path / "phone")]
    assert refusal(lambda: cli.main(words, standalone_mode=False)).endswith("Run pip install 'kdcache[openvino]'.")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "letter.txt").touch()
    assert "got letter.txt" in refusal(lambda: cli.main(words, standalone_mode=False))


def test_a_bundle_replaces_nothing_else(bundle: Path, mini_run: Path, tmp_path: Path) -> None:
    from kdcache.bundle.write import require_bundle_folder  # imports onnxruntime

    require_bundle_folder(bundle)
    (tmp_path / "own").mkdir()
    require_bundle_folder(tmp_path / "own")
    (tmp_path / "own" / "README.md").touch()
    with pytest.raises(UsageError, match=r"got README\.md"):
        require_bundle_folder(tmp_path / "own")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-mother.txt").touch()
    words = ["export", str(mini_run), "--out", f"{tmp_path}/letters/"]
    assert "got to-mother.txt" in refusal(lambda: cli.main(words, standalone_mode=False))
    (tmp_path / "file").touch()
    for out, message in (
        (["--out", ""], "--out: expected the path of a file or folder"),
        (["--format", "bundle", "--out", str(tmp_path / "file")], "got something else"),
    ):
        assert message in refusal(lambda out=out: cli.main(["export", str(mini_run), *out], standalone_mode=False))  # type: ignore[misc]
    words = ["export", str(mini_run), "--format", "onnx", "--out", f"{tmp_path}/new/"]
    assert "expected the path of a file" in refusal(lambda: cli.main(words, standalone_mode=False))


def test_an_export_with_other_probabilities_is_not_written(
    mini_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = export_formats.run_predictor
    monkeypatch.setattr(export_formats, "run_predictor", lambda path, images: run(path, images) + 0.01)
    network = checkpoint.load(mini_run / "model.safetensors")
    with pytest.raises(KdcacheError, match="exported probabilities differ from those of resnet20"):
        export(network, "safetensors", tmp_path / "exported", random_images(network))
    assert list(tmp_path.iterdir()) == []


def test_the_commands_export_and_predict(mini_run: Path, exported: Path, tmp_path: Path) -> None:
    done = kdcache("export", str(mini_run), "--out", "net.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    data = load_data(TeacherConfig.load())
    rows = [int((data.test.labels == label).nonzero()[5]) for label in (1, 8)]  # a trouser and a bag
    for row in rows:
        Image.fromarray(data.test.images[row].permute(1, 2, 0).numpy()).save(tmp_path / f"{row}.png")
    done = kdcache("predict", str(mini_run), *(f"{row}.png" for row in rows), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trouser, bag = done.stdout.splitlines()
    assert re.match(rf"{rows[0]}\.png: Trouser (1\.000|0\.\d+), ", trouser)
    assert re.match(rf"{rows[1]}\.png: Bag ", bag)
    assert bag.count(",") == 4
    for file in (tmp_path / "net.safetensors", exported / "onnx"):
        assert kdcache("predict", str(file), *(f"{row}.png" for row in rows), cwd=tmp_path).stdout == done.stdout
    wrong = kdcache("predict", str(mini_run), "nowhere.png", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "nowhere.png" in wrong.stderr


def test_the_stored_table_of_networks_is_up_to_date() -> None:
    computed = model_sizes(100, 32)
    assert computed == MODELS, "run python data/make_model_sizes.py"
    assert list(computed) == list(MODELS) == list(REGISTRY)


def test_multiply_adds_of_attention_count() -> None:
    class Attention(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2).transpose(1, 2)[:, None].contiguous()  # one head
            return functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert (
        size_of(Attention(), torch.zeros(1, 3, 4, 4)).multiply_adds == 2 * 16 * 16 * 3
    )  # 16 tokens of 3 numbers, twice


def test_multiply_adds_of_a_transformer_count() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            tokens: Tensor = self.layer(images.flatten(2)[..., :4])  # 3 tokens of 4 numbers
            return tokens

    projections, attention, rest = 4 * 3 * 4 * 4, 2 * 3 * 3 * 4, 2 * 3 * 4 * 8
    assert size_of(Encoder().eval(), torch.zeros(1, 3, 4, 4)).multiply_adds == projections + attention + rest
    assert torch.backends.mha.get_fastpath_enabled()


def test_sizes_equal_the_golden_values() -> None:
    golden = json.loads((Path(__file__).with_name("golden") / "models.json").read_text())
    assert {name: MODELS[name].parameters for name in golden} == {
        name: entry["params"] for name, entry in golden.items()
    }
    # The stem of resnet20 is 3 * 16 * 9 * 32 * 32, each of its six first convolutions 16 * 16 * 9 * 32 * 32, and so on.
    stage = 16 * 16 * 9 * 32 * 32
    halved = stage // 2 + 16 * 32 * 16 * 16, 32 * 64 * 8 * 8 + stage // 2
    by_hand = 3 * 16 * 9 * 1024 + 6 * stage + 5 * stage + halved[0] + 5 * stage + halved[1] + 64 * 100
    assert MODELS["resnet20"].multiply_adds == by_hand


def test_networks_and_pairs_of_the_paper_are_listed(tmp_path: Path) -> None:
    listed = kdcache("models", cwd=tmp_path).stdout
    assert re.search(r"resnet8\W+83,892\W+12\.5", listed)
    pairs = re.findall(r"(?m)^│ (\S+)[ │]+(\S+)[ │]+(?:cifar100|tiny-imagenet|imagenet) │$", listed)
    assert len(pairs) == 7 + 7 + 1
    assert {name for pair in pairs for name in pair if not name.startswith("torchvision:")} <= set(MODELS)
    larger = kdcache("models", "--num-classes", "10", "--image-size", "64", cwd=tmp_path).stdout
    assert re.search(r"resnet8\W+78,042\W", larger)


def test_trust_in_one_network_is_not_trust_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "_trusted", set())
    extensions.trust("python:collections:OrderedDict")
    with pytest.raises(UsageError, match="If you trust it"):
        build("python:os:system", num_classes=3)
