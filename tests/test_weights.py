"""Weights from elsewhere: where a file has a network's tensors, normalization and classes, and what a file is."""

import argparse
import datetime
import decimal
import fractions
import io
import json
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
from kdcache.models.class_order import check_class_names, natural_order, reorder_classes
from kdcache.models.load import find_network, trained_network
from kdcache.models.published import read
from kdcache.models.sources import read_torchvision
from kdcache.models.weights import load_into
from kdcache.setup import load_data
from tests.processes import kdcache
from tests.samples import CLASSES, refusal

State = dict[str, torch.Tensor]
HALF = (0.5, 0.5, 0.5)


def state(name: str = "resnet8", classes: int = 3, seed: int = 4) -> State:
    return dict(build(name, num_classes=classes, seed=seed).body.state_dict())


def prefixed(prefix: str, tensors: State) -> State:
    return {prefix + key: value for key, value in tensors.items()}


def saved(path: Path, document: object) -> Path:
    torch.save(document, path)
    return path


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


# Normalization


THIRDS = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def normalization(network: Network) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return network.mean, network.std


def test_a_network_of_timm_has_the_normalization_that_timm_states(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name = "timm:test_resnet"  # 0.5, where the card of a folder has ImageNet's
    tensors = build(name, num_classes=3, seed=1).body.state_dict()
    path = saved(tmp_path / "net.pth", {"state_dict": tensors, "args": argparse.Namespace(mean=None, std=None)})
    assert normalization(find_network(path, data, name)[0]) == (HALF, HALF)
    assert "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5), from the library" in caplog.text
    stated = saved(
        tmp_path / "stated.pth", {"model": tensors, "args": argparse.Namespace(mean=THIRDS[0], std=THIRDS[1])}
    )
    assert normalization(find_network(stated, data, name)[0]) == tuple(map(tuple, THIRDS))
    given = (0.3, 0.3, 0.3), (0.2, 0.2, 0.2)
    assert normalization(find_network(stated, data, name, *given)[0]) == given


@pytest.mark.parametrize("stem", ["", "image_", "pixel_", "data_preprocessor.", "0."])
@pytest.mark.parametrize("scale", [1, 255])
def test_tensors_of_a_module_that_normalizes_state_the_normalization(
    stem: str, scale: int, data: Dataset, tmp_path: Path
) -> None:
    mean, std = (scale * torch.tensor(values).view(1, 3, 1, 1) for values in THIRDS)
    tensors = {**prefixed("model.", RAW), f"{stem}mean": mean, f"{stem}std": std}
    network = find_network(saved(tmp_path / "net.pth", {"state_dict": tensors}), data, "resnet8").network
    assert [*network.mean, *network.std] == pytest.approx([*THIRDS[0], *THIRDS[1]])


def test_a_normalization_of_pixels_to_255_is_refused(data: Dataset, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", RAW)
    message = refusal(lambda: find_network(path, data, mean=(127.5,) * 3))
    assert message.startswith("--mean: expected three numbers from 0 to 1, got (127.5, 127.5, 127.5). Divide")
    assert "--std" in refusal(lambda: find_network(path, data, std=(127.5,) * 3))


def test_it_is_recorded_how_a_network_was_loaded(data: Dataset, tmp_path: Path) -> None:
    path, order = saved(tmp_path / "net.pth", {"model": RAW, "model_ema": EMA}), tmp_path / "order.txt"
    order.write_text("\n".join(CLASSES))
    facts = {
        "weights": str(path),
        "entry": "model_ema",
        "normalization": f"the data, {data.card.name}",
        "clean view": f"the data, {data.card.name}",
        "class order": "that of the data",
    }
    assert find_network(path, data).origin == facts
    found = find_network(path, data, None, HALF, entry="model", class_order=str(order))
    given = {"entry": "model", "normalization": f"--mean and the data, {data.card.name}", "class order": str(order)}
    assert found.origin == {**facts, **given}
    assert find_network(path, data, None, HALF, HALF).origin["normalization"] == "--mean and --std"


STATEMENTS: dict[str, dict[str, Any]] = {
    "config.json": {"architecture": "resnet", "pretrained_cfg": {"mean": THIRDS[0], "std": THIRDS[1]}},
    "preprocessor_config.json": {"image_mean": THIRDS[0], "image_std": THIRDS[1]},
}


@pytest.mark.parametrize("file", STATEMENTS)
def test_files_beside_the_weights_state_the_normalization(file: str, data: Dataset, tmp_path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in RAW.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert normalization(find_network(tmp_path / "model.safetensors", data)[0]) == (data.card.mean, data.card.std)
    (tmp_path / file).write_text(json.dumps(STATEMENTS[file]))
    assert normalization(find_network(tmp_path / "model.safetensors", data)[0]) == tuple(map(tuple, THIRDS))


def test_the_metadata_of_safetensors_state_normalization_and_classes(data: Dataset, tmp_path: Path) -> None:
    metadata = {"mean": json.dumps(THIRDS[0]), "std": json.dumps(THIRDS[1]), "class_names": json.dumps(CLASSES[::-1])}
    save_file({key: value.contiguous() for key, value in RAW.items()}, tmp_path / "net.safetensors", metadata)
    found = read(tmp_path / "net.safetensors")
    assert found.normalization is not None
    assert [*map(list, found.normalization[:2])] == [*THIRDS]
    assert "class 0: expected 'bright', as in the data, got 'striped'" in refusal(
        lambda: find_network(tmp_path / "net.safetensors", data, "resnet8")
    )


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


# Classes


def test_names_are_sorted_by_their_numbers() -> None:
    assert natural_order(["10", "b2", "1", "B10", "2", "a"]) == ["1", "2", "10", "a", "b2", "B10"]


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "torchvision:squeezenet1_1", "timm:test_vit"])
def test_the_classes_of_a_network_are_reordered(name: str) -> None:
    network = build(name, num_classes=4, image_size=64, seed=1).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) == 4:
            nn.init.normal_(layer.weight)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).byte()
    with torch.no_grad():
        before = network(images)
        reorder_classes(network, [2, 0, 3, 1])
        torch.testing.assert_close(network(images), before[:, [2, 0, 3, 1]])


def test_the_order_of_classes_is_given_in_a_file(data: Dataset, tmp_path: Path) -> None:
    path, order = saved(tmp_path / "net.pth", RAW), tmp_path / "order.txt"
    order.write_bytes("\ufeffstriped\r\n bright\r\ndark\r\n\r\n".encode())
    network = find_network(path, data, "resnet8", class_order=str(order))[0]
    assert network.body.fc.bias.equal(RAW["fc.bias"][[1, 2, 0]])  # bright, dark, striped
    assert find_network(path, data, "resnet8", class_order="natural")[0].body.fc.bias.equal(RAW["fc.bias"])
    for text, words in (
        ("bright\ndark", "expected 3 names, one for each class of the data, got 2"),
        ("bright\ndark\nspotted", "got spotted instead of striped"),
        ("bright\ndark\ndark", "got a name twice instead of striped"),
        ("caf\udce9\n", "UTF-8"),
    ):
        order.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert words in refusal(lambda: find_network(path, data, "resnet8", class_order=str(order)))
    assert "No such file" in refusal(lambda: find_network(path, data, "resnet8", class_order="nowhere.txt"))
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    assert "no regular file" in refusal(lambda: find_network(path, data, "resnet8", class_order=pipe))


def test_names_are_compared_exactly_where_they_differ_in_little() -> None:
    check_class_names(["Cat", "dog, hound"], ["cat", "dog"], "weights")
    for names in (["a", "A"], ["x,1", "x,2"], ["a_b", "a b"]):
        check_class_names(names, names, "weights")
        assert "class 0" in refusal(lambda names=names: check_class_names(names[::-1], names, "weights"))  # type: ignore[misc]


@pytest.mark.parametrize("start", [0, 1])
def test_names_that_are_numbers_are_read_from_an_index(start: int, tmp_path: Path) -> None:
    names = natural_order([str(number) for number in range(12)])
    document = {"model": RAW, "class_to_idx": {name: start + index for index, name in enumerate(names)}}
    ((_, found),) = read(saved(tmp_path / "net.pth", document)).name_lists
    assert found == tuple(names)
    assert "class 2: expected '10'" in refusal(lambda: check_class_names(found, sorted(names), "weights"))


SWAPPED = ["dark", "bright", "striped"]
CARRIERS: dict[str, Callable[[list[str]], dict[str, object]]] = {
    "mmpretrain": lambda names: {"meta": {"CLASSES": tuple(names)}},
    "mmengine": lambda names: {"meta": {"dataset_meta": {"classes": names}}},
    "own list": lambda names: {"class_names": names},
    "index of folders": lambda names: {"class_to_idx": {name: index for index, name in enumerate(names)}},
    "by index": lambda names: {"config": {"id2label": {str(index): name for index, name in enumerate(names)}}},
    "array": lambda names: {"classes": np.array(names)},
    "from 1": lambda names: {"class_to_idx": {name: index for index, name in enumerate(names, 1)}},
    "options": lambda names: {"args": argparse.Namespace(class_names=names)},
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_another_order_of_classes_in_the_file_is_refused(carrier: str, data: Dataset, tmp_path: Path) -> None:
    def load(names: list[str], class_order: str | None = None) -> Network:
        path = saved(tmp_path / "net.pth", {"state_dict": RAW, **CARRIERS[carrier](names)})
        return find_network(path, data, "resnet8", class_order=class_order)[0]

    (tmp_path / "order.txt").write_text("\n".join(SWAPPED))
    assert load([*CLASSES]).body.fc.bias.equal(RAW["fc.bias"])
    assert load(["Bright", "dark, somber", "striped"]).body.fc.bias.equal(RAW["fc.bias"])
    assert load(["n00000001", "n00000002", "n00000003"]).body.fc.bias.equal(RAW["fc.bias"])  # nothing to compare
    for names in (SWAPPED, ["cat", "dog", "fox"]):
        message = refusal(lambda names=names: load(names))  # type: ignore[misc]
        assert f"class 0: expected 'bright', as in the data, got '{names[0]}'" in message
        assert "--class-order" in message
    assert load(SWAPPED, str(tmp_path / "order.txt")).body.fc.bias.equal(RAW["fc.bias"][[1, 0, 2]])
    assert "Correct --class-order." in refusal(lambda: load([*CLASSES], str(tmp_path / "order.txt")))


def test_names_of_the_data_in_another_order_are_refused_under_any_key(data: Dataset, tmp_path: Path) -> None:
    def load(**facts: object) -> object:
        return find_network(saved(tmp_path / "net.pth", {"model": RAW, **facts}), data, "resnet8")

    load(vocabulary=["some", "other", "words"], columns=["loss", "top1", "top5"])
    for facts in ({"vocabulary": SWAPPED}, {"hparams": {"map": {name: index for index, name in enumerate(SWAPPED)}}}):
        message = refusal(lambda facts=facts: load(labels=["x", "y", "z"], **facts))  # type: ignore[misc]
        assert "class 0: expected 'bright', as in the data, got 'dark'" in message


def test_the_classes_of_a_network_of_kdcache_are_compared(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    checkpoint.save(build("resnet8", num_classes=3, seed=1), path, class_names=SWAPPED)
    assert "class 0: expected 'bright', as in the data, got 'dark'" in refusal(lambda: trained_network(path, data))


def test_an_option_that_a_file_of_kdcache_makes_useless_is_refused(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    checkpoint.save(build("resnet8", num_classes=3, seed=1), path, class_names=CLASSES)
    message = refusal(lambda: find_network(path, data, mean=HALF, class_order="natural"))
    assert message.startswith("--mean, --class-order: ")
    assert "expected resnet8, got resnet20" in refusal(lambda: find_network(path, data, "resnet20"))


def test_classes_sorted_by_number_are_loaded_in_their_order(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "val"):
        for name in range(12):
            (tmp_path / "data" / part / str(name)).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (32, 32), (20 * name, 0, 0)).save(
                    tmp_path / "data" / part / str(name) / f"{number}.png"
                )
    network = build("resnet8", num_classes=12, seed=1)
    saved(tmp_path / "net.pth", network.body.state_dict())
    words = f"--dataset folder:{tmp_path / 'data'} --image-size 32 --device cpu --weights net.pth".split()
    plain = kdcache("teacher-load", *words, "--out", "plain", cwd=tmp_path)
    assert "add --class-order natural" in plain.stderr
    done = kdcache("teacher-load", *words, "--out", "natural", "--class-order", "natural", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--class-order" not in done.stderr
    found = checkpoint.load(tmp_path / "natural" / "model.safetensors").body.state_dict()
    order = [int(name) for name in sorted(map(str, range(12)))]
    assert found["fc.bias"].equal(network.body.state_dict()["fc.bias"][order])
    assert found["fc.weight"].equal(network.body.state_dict()["fc.weight"][order])
