"""Exported files and bundles: the same classes as the run, without kdcache where none is needed."""

import dataclasses
import importlib.util
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcache.stages.teacher import load_teacher
from PIL import Image

from kdcache import __version__, run_data
from kdcache.accuracy import evaluate
from kdcache.analysis import cost
from kdcache.choices import EXPORT_FORMATS
from kdcache.cli import cli
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import Network, checkpoint, export_formats
from kdcache.models.export import export, random_images
from kdcache.models.export_formats import OPSET, Save
from kdcache.models.predictor import load_predictor
from kdcache.models.sources import shipped_teacher
from kdcache.run.folder import FinishedRun
from kdcache.setup import load_data
from tests.processes import kdcache
from tests.samples import noise, refusal


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
    accuracy = evaluate(network, split, Compute(torch.device("cpu"), "float32"))
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
        patch.setattr(run_data, "load_run_data", lambda *_, **__: part)
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

    monkeypatch.setattr(run_data, "load_run_data", refuse)
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
