"""What a file states beside its tensors: the normalization of the images, and the order of the classes."""

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.config import TeacherConfig
from kdcache.datasets import Dataset
from kdcache.models import Network, build, checkpoint
from kdcache.models.class_order import check_class_names, natural_order, reorder_classes
from kdcache.models.load import find_network, trained_network
from kdcache.models.published import read
from kdcache.setup import load_data
from tests.processes import kdcache
from tests.samples import CLASSES, refusal
from tests.weights import HALF, prefixed, saved, state


@pytest.fixture(scope="module")
def data(small: dict[str, Any]) -> Dataset:
    return load_data(TeacherConfig.load(**small))


RAW, EMA = state(seed=4), state(seed=6)

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
