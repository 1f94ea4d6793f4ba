"""Predictions for pictures: which are read, in which order, and how they are written."""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdcache.cli import cli
from kdcache.datasets.named import named_pictures
from kdcache.datasets.pictures import Pictures, read_image
from kdcache.errors import KdcacheError
from kdcache.models import build, checkpoint, predictor
from kdcache.models.predictor import load_predictor
from tests.samples import jpeg, noise, refusal

CLASSES = ("cat", "dog, large", 'the "owl"')


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a network with fresh weights."""
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    checkpoint.save(build("resnet8", num_classes=3, seed=1), path, class_names=CLASSES)
    return path


def predict(*words: object) -> None:
    cli.main(["predict", *map(str, words)], standalone_mode=False)


def write_noise(path: Path) -> Path:
    Image.fromarray(noise(40, 50)).save(path, "PNG")
    return path


# Which pictures, in which order


def test_every_picture_that_can_be_read_gets_a_prediction(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / ".hidden").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "circle" / "inner").mkdir(parents=True)
    (tmp_path / "circle" / "inner" / "back").symlink_to("..")
    for name in ("one.JPG", "deep/two.jpeg", ".hidden/three.jpg", "notes.txt"):
        (tmp_path / "folder" / name).write_bytes(jpeg(40, 50))
    (tmp_path / "bad.jpg").write_text("no picture")
    write_noise(tmp_path / "[1].png")
    write_noise(tmp_path / "1.png")
    given = ("[1].png", "none", "circle", "bad.jpg", "gone.jpg", "folder", "*.png", "*.gif")
    with pytest.raises(KdcacheError) as caught:
        predict(teacher, *(tmp_path / name for name in given))
    assert (caught.value.exit_code, str(caught.value)) == (1, "images without a prediction: got 5 of 10")
    output = capsys.readouterr()
    named = [line.partition(": ")[0] for line in output.out.splitlines()]
    expected = ("[1].png", "folder/deep/two.jpeg", "folder/one.JPG", "1.png", "[1].png")
    assert named == [str(tmp_path / name) for name in expected]
    for part in ("bad.jpg", "gone.jpg", "1 hidden, 1 .txt", "none: expected images", "a folder that contains", "*.gif"):
        assert part in output.err
    for name in ("none", "gone.jpg", "*.gif"):
        assert name in refusal(lambda name=name: predict(teacher, tmp_path / name))  # type: ignore[misc]


def test_a_pattern_lists_each_picture_once(tmp_path: Path) -> None:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    names = ("photos/a.png", "photos/deep/b.png", "photos/notes.txt")
    for name in names:
        (tmp_path / name).touch()
    for pattern, expected in (("photos/**", names[:2]), ("photos/**/*.png", names[:2]), ("**/deep", names[1:2])):
        files = named_pictures([f"{tmp_path}/{pattern}"]).files
        found = [os.path.normpath(files.name(place)) for place in range(len(files))]
        assert found == [str(tmp_path / name) for name in expected]


def test_the_limit_is_that_of_the_run(teacher: Path, tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    predict(teacher, tmp_path / "large.png")
    with pytest.raises(KdcacheError, match="1 of 1"):
        predict(teacher, tmp_path / "large.png", "--max-pixels", 5000)


def test_batches_of_several_processes_are_in_order(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predictor, "MAX_BATCH", 4)
    paths = [write_noise(tmp_path / f"{number:02}.png") for number in range(15)]
    for bad in (1, 4, 5, 6, 7, 14):  # the second batch is bad as a whole
        paths[bad].write_bytes(b"")
    with pytest.raises(KdcacheError, match="6 of 15"):
        predict(network, tmp_path, "--format", "csv", "--workers", 2, "--top", 1)
    output = capsys.readouterr()
    _, *rows = csv.reader(output.out.splitlines())
    assert [path for path, *_ in rows] == [str(path) for path in paths if path.stat().st_size]
    assert [line.split()[4] for line in output.err.splitlines()] == [f"{paths[bad]}:" for bad in (1, 4, 5, 6, 7, 14)]


def test_pictures_are_read_when_their_batch_is_due(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "MAX_BATCH", 2)
    read: list[int] = []
    monkeypatch.setattr(Pictures, "clean", lambda _, rows: read.extend(rows) or torch.zeros(1, 3, 32, 32).byte())
    for number in range(6):
        (tmp_path / f"{number}.png").touch()
    files = named_pictures([str(tmp_path)]).files
    for done, _ in enumerate(predictor.predict(load_predictor(network), files, 1000, 0), 1):
        assert len(read) <= done + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}", ""], "path of images"),
        (["{}", "a.png", ""], "path of images"),
        (["", "a.png"], "network: expected a run folder"),
        (["{}", "a.png", "--top", "4"], "--top: expected at most 3"),
        (["{}", "a.png", "--best"], "--best: expected a run folder"),
        (["a.png", "a.png"], "a file that kdcache exported"),
    ],
)
def test_wrong_use_is_refused_before_the_work(
    words: Sequence[str], message: str, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "a.png")
    assert message in refusal(lambda: predict(*(word.format(network) for word in words)))


# How they are written


def test_files_of_any_name_are_told_apart_by_programs(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a,b", 'c"d"', "e\nf", "g\rh", "=1+1", "ü"]
    paths = sorted(write_noise(tmp_path / f"{name}.png") for name in names)
    body = checkpoint.load(network).eval()
    with torch.inference_mode():
        computed = body(torch.stack([read_image(path, 32) for path in paths])).softmax(1)
    predict(network, tmp_path, "--format", "jsonl")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in paths]
    assert [[each["class"] for each in line["classes"]] for line in lines] == [
        [CLASSES[each["label"]] for each in line["classes"]] for line in lines
    ]
    found = [
        [each["probability"] for each in sorted(line["classes"], key=lambda each: each["label"])] for line in lines
    ]
    assert torch.tensor(found).equal(computed)
    predict(network, tmp_path, "--format", "csv", "--top", 2)
    head, *rows = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert head == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert rows == [
        [line["path"], *(str(value) for each in line["classes"][:2] for value in (each["class"], each["probability"]))]
        for line in lines
    ]
    predict(network, tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == len(names)


def test_a_name_that_is_not_utf_8_is_found_again_in_json(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_noise(tmp_path / os.fsdecode(b"\xff.png"))
    predict(network, path, "--format", "jsonl")
    assert Path(json.loads(capsys.readouterr().out)["path"]).is_file()


def test_a_closed_pipe_ends_the_command_quietly(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with suppress(BrokenPipeError), os.fdopen(write_end, "w") as pipe:  # when it is closed
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit):
            predict(network, write_noise(tmp_path / "a.png"))
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_the_progress_bar_leaves_the_output_alone(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    bad = tmp_path / "b.png"
    bad.touch()
    with pytest.raises(KdcacheError):
        predict(network, write_noise(tmp_path / "a.png"), bad)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(str(tmp_path / "a.png"))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert any(line.startswith("predicting") for line in shown)
    assert sum(line.startswith("kdcache: could not decode") for line in shown) == 1
    assert "a.png" not in terminal.getvalue()


# Exported files


def write_onnx(path: Path, size: int = 32, **metadata: object) -> Path:
    """Write a network whose probabilities are the means of the channels."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["probabilities"], axes=[2, 3], keepdims=0),
    ]
    given = helper.make_tensor_value_info("images", types.UINT8, ["batch", 3, size, size])
    made = helper.make_tensor_value_info("probabilities", types.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "means", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
    return path


FACTS = {
    "name": "means",
    "num_classes": 3,
    "image_size": 32,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "class_names": CLASSES,
    "shorter_side": 64,
}


def test_a_file_of_onnx_states_its_classes_and_preprocessing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_onnx(tmp_path / "means.onnx", **FACTS)
    picture = write_noise(tmp_path / "a.png")
    predict(file, picture, "--format", "jsonl")
    (line,) = capsys.readouterr().out.splitlines()
    means = {each["class"]: each["probability"] for each in json.loads(line)["classes"]}
    expected = read_image(picture, 32, 64).float().mean((1, 2))
    assert [means[name] for name in CLASSES] == pytest.approx(expected.tolist())


def test_a_file_of_onnx_without_its_facts_is_refused(tmp_path: Path) -> None:
    picture = write_noise(tmp_path / "a.png")
    wrong = {
        "expected classes and preprocessing, got none": {},
        "number of class names": {**FACTS, "class_names": ["cat"]},
        "input and output": {**FACTS, "image_size": 64},
        "shorter_side": {**FACTS, "shorter_side": 2**40},
    }
    for message, metadata in wrong.items():
        file = write_onnx(tmp_path / "means.onnx", **metadata)
        assert message in refusal(lambda file=file: predict(file, picture))  # type: ignore[misc]
    file.write_bytes(file.read_bytes()[:-200])
    assert "a file that kdcache exported" in refusal(lambda: predict(file, picture))
