"""Weights from elsewhere: where a file has the tensors of a network, and what a file is."""

import argparse
import datetime
import decimal
import fractions
import io
import logging
import os
import pickle
import re
import tarfile
import uuid
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models as torchvision_models
from torchvision.models import VisionTransformer

from kdcache.config import TeacherConfig
from kdcache.datasets import Dataset
from kdcache.models import Network, build, checkpoint
from kdcache.models.load import find_network
from kdcache.models.published import read
from kdcache.models.sources import read_torchvision
from kdcache.models.weights import load_into
from kdcache.setup import load_data
from tests.samples import CLASSES, refusal
from tests.weights import HALF, State, prefixed, saved, state


def loaded(document: object, folder: Path, choice: str | None = None, name: str = "resnet8") -> State:
    """Save a document, and load it into a network."""
    path = saved(folder / "net.pth", document)
    network = build(name, num_classes=3, seed=5)
    load_into(network, read(path).entries, path, choice)
    return dict(network.body.state_dict())


def is_same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in expected)


@pytest.fixture(scope="module")
def data(small: dict[str, Any]) -> Dataset:
    return load_data(TeacherConfig.load(**small))


# Tensors


RAW, EMA = state(seed=4), state(seed=6)
HEADS = {("head." if key.startswith("fc") else "backbone.") + key: value for key, value in RAW.items()}
AVERAGED = dict(AveragedModel(build("resnet8", num_classes=3, seed=4).body).state_dict())

UNCOUNTED = build("resnet8", num_classes=3, seed=4).body.state_dict()  # says that it is of the present version
for counter in [key for key in UNCOUNTED if key.endswith("num_batches_tracked")]:
    del UNCOUNTED[counter]

LAYOUTS: dict[str, object] = {
    "without counters": dict(UNCOUNTED),
    "without counters, of the present version": {"model": UNCOUNTED},
    "lightning": {"state_dict": prefixed("model.", RAW), "pytorch-lightning_version": "2.5.0"},
    "backbone and head": {"state_dict": HEADS, "meta": {}},
    "backbone and bare head": {key.removeprefix("head."): value for key, value in HEADS.items()},
    "parts of a module": {("m." if key.startswith("fc") else "m.body.") + key: value for key, value in RAW.items()},
    "counted": {**RAW, "epoch": torch.tensor(3), "best_acc1": torch.tensor(71.5), "head.position_ids": torch.arange(9)},
    "within a module": {"state_dict": prefixed("model.", HEADS)},
    "beside the teacher of a distillation": {
        "state_dict": {**prefixed("student.net.", RAW), "teacher.a": EMA["fc.bias"]}
    },
    "averaged": {"model_ema": AVERAGED},
    "averaged alone": AVERAGED,
    "profiled": {
        **RAW,
        "total_ops": torch.zeros(1),
        "total_params": torch.zeros(1),
        "layer1.total_ops": torch.zeros(1),
    },
    "deep": {"checkpoint": {"network": {"state_dict": prefixed("module.", RAW)}}},
    "wrapped within": {key.replace(".conv1", ".module._orig_mod.conv1"): value for key, value in RAW.items()},
    "unusual key": {"weights": RAW, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}},
    "mmcv, whose ema_... are the raw weights": {
        "state_dict": {**HEADS, "ema_backbone_conv1_weight": EMA["conv1.weight"]}
    },
    "of the standard library": {
        "model": RAW,
        "collections": [defaultdict(list, a=[1]), deque([1, 2]), frozenset([1]), {1}, range(3), slice(1)],
        "times": [datetime.datetime.now(datetime.UTC), datetime.date.today(), datetime.timedelta(3)],
        "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1 + 2j, uuid.UUID(int=3)],
        "options": SimpleNamespace(lr=0.1),
        "types": [int, list],
    },
    "of NumPy": {
        "model": RAW,
        "best": np.float32(3),
        "history": np.arange(3.0),
        "names": np.array(["x", "yy"]),
        "objects": np.array([1, None, "x"], object),
        "records": np.zeros(3, [("a", "i4"), ("b", "f8")]),
        "random": ("MT19937", np.zeros(624, np.uint32), 624, 0, 0.0),
        "flag": np.bool_(True),
        "text": np.str_("x"),
        "time": np.datetime64("2020-01-01"),
        "none": np.zeros((2, 0)),
        "big": np.ones(2, ">f4"),
        "args": argparse.Namespace(lr=np.float64(0.1), folder=PosixPath("out"), torch=torch.__version__),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_is_found_wherever_a_file_has_its_tensors(layout: str, tmp_path: Path) -> None:
    assert is_same(loaded(LAYOUTS[layout], tmp_path), RAW)


def test_numbers_of_numpy_are_read_without_its_pickles(tmp_path: Path) -> None:
    document = {"model": RAW, "accuracy": np.float32(71.5), "classes": np.array(["a", "bé", "c"])}
    found = read(saved(tmp_path / "net.pth", document))
    assert (found.accuracy, found.name_lists) == (71.5, (("classes", ("a", "bé", "c")),))
    assert type(found.accuracy) is float


BESIDE: dict[str, tuple[dict[str, object], str, str]] = {
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict_ema", "state_dict"),
    "torchvision and DeiT": ({"model": RAW, "model_ema": prefixed("module.", EMA)}, "model_ema.module", "model"),
    "one dictionary": (
        {"state_dict": {**prefixed("model.", RAW), **prefixed("ema_model.", EMA)}},
        "state_dict.ema_model",
        "state_dict.model",
    ),
    "at the top": ({**RAW, "ema": EMA}, "ema", "."),
}


@pytest.mark.parametrize("layout", BESIDE)
def test_averaged_weights_are_taken_and_said(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document, averaged, raw = BESIDE[layout]
    assert is_same(loaded(document, tmp_path), EMA)
    assert f"took the averaged (EMA) weights in {averaged}; there are others in {raw}" in caplog.text
    assert is_same(loaded(document, tmp_path, averaged), EMA)
    assert is_same(loaded(document, tmp_path, raw), RAW)
    message = refusal(lambda: loaded(document, tmp_path, "weights"))
    assert averaged in message
    assert message.endswith("got weights")


@pytest.mark.parametrize("key", ["ema_state_dict", "state_dict_swa", "averaged_model", "modelEMA", "emaModel"])
def test_averaged_weights_have_many_names(key: str, tmp_path: Path) -> None:
    assert is_same(loaded({"state_dict": RAW, key: EMA}, tmp_path), EMA)


@pytest.mark.parametrize(
    ("name", "value"), [("fc.bias", float("nan")), ("bn1.running_var", float("inf")), ("bn1.running_var", -1.0)]
)
def test_weights_that_are_no_numbers_are_refused(name: str, value: float, tmp_path: Path) -> None:
    spoiled = RAW[name].clone()
    spoiled[0] = value
    message = refusal(lambda: loaded({**RAW, name: spoiled}, tmp_path))
    assert f"expected finite numbers, and no negative variance, got {name}. " in message
    large = torch.full((3,), 1e300, dtype=torch.float64)  # infinite as float32
    assert "got fc.bias" in refusal(lambda: loaded({**RAW, "fc.bias": large}, tmp_path))


def test_of_equal_networks_one_must_be_chosen(tmp_path: Path) -> None:
    document = {"first": RAW, "second": EMA}
    assert "got several: first, second. Choose one with --weights-entry." in refusal(lambda: loaded(document, tmp_path))
    assert is_same(loaded(document, tmp_path, "second"), EMA)
    larger = {"teacher": state("resnet32x4"), "student": RAW}  # all names of the student's are also the teacher's
    assert is_same(loaded(larger, tmp_path), RAW)


def test_what_is_left_out_is_said_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    extra = torch.zeros(3)
    assert is_same(loaded({**prefixed("model.", RAW), "criterion.weight": extra}, tmp_path), RAW)
    assert "left out, because the network does not have them: criterion.weight" in caplog.text
    twice = {**HEADS, "head.conv1.weight": RAW["conv1.weight"]}
    for document in ({**RAW, "logit_scale": torch.tensor(1.0)}, {**HEADS, "neck.weight": extra}, twice):
        assert "tensors unknown: " in refusal(lambda document=document: loaded(document, tmp_path))  # type: ignore[misc]
    assert "got 4." in refusal(lambda: loaded(state(classes=4), tmp_path))


def test_a_part_of_a_network_never_stands_for_another(tmp_path: Path) -> None:
    without = {key: value for key, value in RAW.items() if key != "bn1.weight"}  # there is a layer1.0.bn1.weight
    for document in (without, prefixed("model.", without)):
        assert "tensors missing" in refusal(lambda document=document: loaded(document, tmp_path))  # type: ignore[misc]


# torchvision


def old_names(name: str, tensors: State) -> State:
    """Name tensors as in the files that torchvision publishes."""
    if not name.startswith("densenet"):
        return tensors
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))(\d)\.")
    return {pattern.sub(r"\1.\2.", key): value for key, value in tensors.items() if "num_batches" not in key}


@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
@pytest.mark.parametrize("by", ["name", "file", "other file"])
def test_published_layouts_of_torchvision_give_its_own_logits(
    name: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = torchvision_models.get_model_weights(name).IMAGENET1K_V1
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    network = torchvision_models.get_model(name, **options)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # else the logits hardly depend on the image
            nn.init.kaiming_normal_(layer.weight)
    tensors = network.state_dict()
    path = tmp_path / "hub" / "checkpoints" / entry.url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    torch.save(old_names(name, tensors), path)
    weights = {"name": entry.name, "file": str(path), "other file": str(path.rename(tmp_path / "own.pth"))}
    if by != "other file":
        (tmp_path / "own.pth").rename(path)
    found = read_torchvision(f"torchvision:{name}", weights[by])
    ours = build(f"torchvision:{name}", num_classes=1000, image_size=64, seed=1)
    load_into(ours, found.entries, path)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    if by == "other file":
        assert found.normalization is None
        return
    assert found.normalization is not None
    ours.set_normalization(found.normalization.mean, found.normalization.std)
    theirs = torchvision_models.get_model(name, weights=entry).eval()  # with transform_input
    preprocess = entry.transforms(crop_size=64, resize_size=64)
    with torch.no_grad():
        logits, expected = ours.eval()(images), theirs(preprocess(images))
    assert (expected[0] - expected[1]).std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert found.accuracy == entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert len(found.name_lists[0][1]) == 1000


def test_networks_convert_weights_of_their_earlier_versions(tmp_path: Path) -> None:
    body = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3)
    facts: dict[str, Any] = {"name": "vit", "num_classes": 3, "image_size": 32, "mean": HALF, "std": HALF}
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = {
        re.sub(r"\.mlp\.[03]\.", lambda match: names[match[0]], key): value + 1
        for key, value in body.state_dict().items()
    }
    assert not old.keys() <= body.state_dict().keys()
    load_into(Network(body, **facts), {"": old}, "vit.pth")
    assert all(value.equal(other) for value, other in zip(body.state_dict().values(), old.values(), strict=True))


def test_a_network_that_needs_the_version_of_its_weights_is_loaded(tmp_path: Path) -> None:
    network = build("torchvision:mnasnet0_5", num_classes=3, image_size=64, seed=1)
    checkpoint.save(network, tmp_path / "net.safetensors")
    assert is_same(dict(checkpoint.load(tmp_path / "net.safetensors").body.state_dict()), network.body.state_dict())
    other = build("torchvision:mnasnet0_5", num_classes=3, image_size=64, seed=2)
    load_into(other, {"": dict(network.body.state_dict())}, "mnasnet.pth")
    assert is_same(dict(other.body.state_dict()), network.body.state_dict())


def test_damaged_weights_in_the_cache_of_torch_give_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save(nn.Linear(2, 2), path)  # a pickled module
    message = refusal(lambda: read_torchvision("torchvision:resnet18", "IMAGENET1K_V1"))
    assert "contain code, which is not run" in message
    assert "weights_only" not in message


# Files that are something else


def archive(path: Path, names: tuple[str, ...], compressed: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as made:
        for name in names:
            made.writestr(name, b"content")


def tar(path: Path, names: tuple[str, ...]) -> None:
    with tarfile.open(path, "w") as made:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            made.addfile(entry, io.BytesIO(b"abc"))


def tar_of_a_checkpoint(path: Path) -> None:
    """Archive a checkpoint, whose end, that of a ZIP archive, is near the end of the file."""
    member = saved(path.with_name("member.pth"), RAW)
    with tarfile.open(path, "w") as made:
        made.add(member, "member.pth")


def beginning(path: Path, share: float, save: Callable[[Path], object]) -> None:
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def save_tensors(path: Path) -> None:
    save_file({key: value.contiguous() for key, value in RAW.items()}, path)


def save_old(path: Path) -> None:
    torch.save(RAW, path, _use_new_zipfile_serialization=False)


def save_arrays(path: Path) -> None:
    torch.save({"model": {key: value.numpy() for key, value in RAW.items()}}, path)


INDEX = '{"metadata": {"total_size": 3}, "weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}'
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"

OTHER: dict[str, tuple[Callable[[Path], object], str]] = {
    "LFS pointer": (lambda path: path.write_text(POINTER), "a Git LFS pointer. Fetch the file itself"),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html>é</html>"), "a web page"),
    "page in Latin-1": (lambda path: path.write_bytes(b"<html><title>caf\xe9</title>" + b" " * 999), "a web page"),
    "server error": (lambda path: path.write_text("<?xml version='1.0'?><Error>AccessDenied</Error>"), "XML"),
    "text": (lambda path: path.write_text("404: Not Found"), "text that begins with '404: Not Found'"),
    "index": (lambda path: path.write_text(INDEX), "the index of weights in several shards"),
    "index with a byte order mark": (lambda path: path.write_text("\ufeff" + INDEX), "the index of weights in several"),
    "JSON": (lambda path: path.write_text('{"epoch": 3}'), "a JSON document"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "zeros"),
    "TorchScript": (
        lambda path: archive(path, ("a/data.pkl", "a/constants.pkl")),
        "a program of TorchScript",
    ),
    "torch.export": (lambda path: archive(path, ("a/archive_format", "a/models/m.json")), "a program of torch.export"),
    "module": (lambda path: torch.save(nn.ReLU(), path), r"contain code, which is not run: .*activation\.ReLU"),
    "archive": (lambda path: archive(path, ("model.pth", "LICENSE"), True), "other files: LICENSE, model.pth. Unpack"),
    "NumPy archive": (lambda path: archive(path, ("a.npy", "b.npy")), "an archive of NumPy arrays"),
    "tar": (lambda path: tar(path, ("model.pth",)), "a tar archive of other files: model.pth. Unpack"),
    "tar of a checkpoint": (tar_of_a_checkpoint, "a tar archive of other files: member.pth. Unpack"),
    "noise": (lambda path: path.write_bytes(bytes(range(7, 120)) * 9), "got a file of another format$"),
    "UTF-16": (lambda path: path.write_bytes("<html>".encode("utf-16")), "got a file of another format$"),
    "beginning": (
        lambda path: beginning(path, 0.5, lambda path: saved(path, RAW)),
        "the beginning of an archive, .* again",
    ),
    "safetensors begun": (
        lambda path: beginning(path, 0.001, save_tensors),
        "the beginning of a safetensors file. .* again",
    ),
    "old begun": (
        lambda path: beginning(path, 0.5, save_old),
        "got an incomplete or damaged one. Download or copy it again",
    ),
    "arrays": (save_arrays, "tensors by name, got arrays of NumPy. In the project"),
    "old tar": (lambda path: tar(path, ("sys_info", "pickle", "storages", "tensors")), "the tar format of torch"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + b"a" * 99), "compressed with gzip. Unpack"),
    "Keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"a" * 99), "an HDF5 file"),
    "NumPy": (lambda path: np.save(path.open("wb"), np.zeros(3)), "an array of NumPy"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "a pickle that torch.save did not write"),
    "odd pickle": (lambda path: path.write_bytes(b"\x80\x02K\x05}b."), "plain data, got int$"),
    "another protocol": (lambda path: torch.save({"model": RAW}, path, pickle_protocol=4), "a pickle protocol other"),
    "a pipe": (os.mkfifo, "no regular file"),
    "a folder": (lambda path: saved((path.mkdir(), path / "weights.bin")[1], RAW), "a folder. .* such as weights.bin"),
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_something_else_is_named(kind: str, suffix: str, tmp_path: Path, data: Dataset) -> None:
    path = tmp_path / f"net{suffix}"
    make, words = OTHER[kind]
    make(path)
    message = refusal(lambda: find_network(path, data))
    assert re.search(words, message), message
    assert not re.search(r"weights_only|safe_globals|torch\.load|unexpected|Errno", message)


def test_the_suffix_of_a_checkpoint_does_not_matter(data: Dataset, tmp_path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in RAW.items()}
    save_file(tensors, tmp_path / "other.bin")
    torch.save(tensors, tmp_path / "other.safetensors")
    checkpoint.save(build("resnet8", num_classes=3, seed=4), tmp_path / "own.pth", class_names=CLASSES)
    for name in ("other.bin", "other.safetensors", "own.pth"):
        assert is_same(dict(find_network(tmp_path / name, data)[0].body.state_dict()), RAW)
    (tmp_path / "other.bin").rename(tmp_path / "model-00001-of-00003.safetensors")
    assert "one of 3 shards" in refusal(lambda: read(tmp_path / "model-00001-of-00003.safetensors"))
