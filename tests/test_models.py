"""The networks against golden values, their normalization and seeds, and their checkpoints."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcache import tensor_files
from kdcache.errors import UsageError
from kdcache.files import write_atomically, write_json, write_text
from kdcache.models import REGISTRY, Network, build, checkpoint
from tests import reference

GOLDEN = reference.golden("models")
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
FAMILIES = ("resnet8", "resnet8x4", "wrn_16_2", "vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2")


def network(name: str = "resnet8", seed: int = 3) -> Network:
    """A network in evaluation mode, with running statistics that are not the initial ones."""
    made = build(name, num_classes=10, mean=MEAN, std=STD, seed=seed)
    with torch.no_grad():
        made(pixels(8))
    return made.eval()


def pixels(batch: int = 2, size: int = 32) -> Tensor:
    return ((reference.u(7, batch * 3 * size * size) + 1) * 128).to(torch.uint8).reshape(batch, 3, size, size)


def relative(actual: Tensor | float, expected: object) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_every_network_has_golden_values() -> None:
    assert set(REGISTRY) == set(GOLDEN) | {"resnet14", "resnet32", "resnet44"}  # without golden values


@pytest.mark.parametrize("name", GOLDEN)
def test_shapes_features_and_logits_equal_the_golden_values(name: str) -> None:
    expected, body = GOLDEN[name], build(name, num_classes=100).body.double().eval()
    reference.fill(body)
    assert [[key, list(value.shape)] for key, value in body.state_dict().items()] == expected["state"]
    assert sum(p.numel() for p in body.parameters() if p.requires_grad) == expected["params"]
    with torch.no_grad():
        features, logits = body.features(reference.images()), body(reference.images())
    assert [list(feature.shape) for feature in features] == expected["features"]
    relative(torch.stack([feature.norm() for feature in features]), expected["feature_norms"])
    relative(logits[:, :8], expected["logits_first8"])
    relative(logits.norm(), expected["logits_norm"])


@pytest.mark.parametrize("name", FAMILIES)
def test_larger_images(name: str) -> None:
    net = build(name, num_classes=200, image_size=64, seed=0).eval()
    with torch.no_grad():
        large, small = net.features(pixels(size=64)), net.features(pixels(size=32))
        assert net(pixels(size=64)).shape == (2, 200)
    assert large[-1].shape == small[-1].shape
    assert [f.shape[-1] for f in large[:-2]] == [2 * f.shape[-1] for f in small[:-2]]
    # VGG pools once more for large images, so that its last map has the same size.
    assert large[-2].shape[-1] == small[-2].shape[-1] * (1 if name == "vgg8" else 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_feature_has_gradients(name: str) -> None:
    body = network(name).train().body
    parts = [feature.square().mean() for feature in body.features(reference.images().float())]
    torch.stack([*parts, body(reference.images().float()).mean()]).sum().backward()  # fails if a map was overwritten
    assert all(p.grad is not None for p in body.parameters())


def test_normalization() -> None:
    net = network()
    by_hand = (pixels().double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        logits = net(pixels())
        assert torch.equal(logits, net(pixels().float()))
        torch.testing.assert_close(logits, net.body(by_hand.float()), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net.normalize(pixels()), by_hand.float(), rtol=1e-5, atol=1e-5)
    assert net.normalize(pixels()).is_contiguous(memory_format=torch.channels_last)
    assert net.state_dict()["body.layer1.0.conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(key.startswith("body.") for key in net.state_dict())


def test_autocast_converts_the_body_but_not_the_normalization() -> None:
    net = network()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net.normalize(pixels()).dtype == torch.float32
        assert net(pixels()).dtype == torch.bfloat16


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build("wrn_16_1", num_classes=10, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert checkpoint.fingerprint(build("wrn_16_1", num_classes=10, seed=5)) == checkpoint.fingerprint(first)
    assert checkpoint.fingerprint(build("wrn_16_1", num_classes=10, seed=6)) != checkpoint.fingerprint(first)
    assert checkpoint.fingerprint(build("wrn_16_1", num_classes=10)) != checkpoint.fingerprint(
        build("wrn_16_1", num_classes=10)
    )


def test_problems_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        build("resnet9", num_classes=0, image_size=31, std=(0.5, 0.0, 0.5))
    assert len(caught.value.problems) == 4
    assert all(name in caught.value.problems[0] for name in REGISTRY)


def test_equal_networks_are_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two", "three", "four"):
        checkpoint.save(network(), tmp_path / name, epoch=3, top1=12.5)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoint_round_trip(name: str, tmp_path: Path) -> None:
    net, path = network(name), tmp_path / "net.safetensors"
    checkpoint.save(net, path, recipe="some facts")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loaded = checkpoint.load(path).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert checkpoint.metadata(path)["recipe"] == "some facts"
    assert (loaded.name, loaded.num_classes, loaded.image_size) == (net.name, net.num_classes, net.image_size)
    assert (loaded.mean, loaded.std) == (MEAN, STD)
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(net)
    with torch.no_grad():
        assert torch.equal(loaded(pixels()), net(pixels()))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metadata_may_not_use_the_names_of_the_networks_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mean"):
        checkpoint.save(network(), tmp_path / "net.safetensors", mean="0")
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, state: dict[str, Tensor], **changes: object) -> None:
    """Write other tensors or metadata with a valid checksum."""
    stored = {key: value for key, value in checkpoint.metadata(path).items() if key != "sha256"}
    tensor_files.save(path, state, {**stored, **changes})


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def reworded(path: Path) -> None:
    content = path.read_bytes()
    assert b"0.5071" in content
    path.write_bytes(content.replace(b"0.5071", b"0.5072"))


def unchecked(path: Path) -> None:
    stored = {key: value for key, value in checkpoint.metadata(path).items() if key != "sha256"}
    save_file(load_file(path), path, {"kdcache": json.dumps(stored)})


def enlarged(**header: object) -> Callable[[Path], object]:
    """Change the type, shape or offset of a tensor in the header."""

    def spoil(path: Path) -> None:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        stated = json.loads(content[8 : 8 + size])
        stated["fc.bias"].update(header)
        text = json.dumps(stated).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return spoil


def renamed(path: Path) -> None:
    state = load_file(path)
    state["fc.scale"] = state.pop("fc.weight")
    rewrite(path, state)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "expected a file, got nothing"),
    "folder": (replaced_by_folder, "got a folder"),
    "empty": (lambda path: path.write_bytes(b""), "a complete safetensors file"),
    "text": (lambda path: path.write_text("no tensors in here"), "a complete safetensors file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "a complete safetensors file"),
    "foreign": (lambda path: save_file(load_file(path), path, {"format": "pt"}), "format in the metadata.*got none"),
    "older": (lambda path: rewrite(path, load_file(path), format="kdcache-network-1"), "got kdcache-network-1"),
    "bare": (lambda path: save_file(load_file(path), path), "format in the metadata.*got none"),
    "other name": (
        lambda path: rewrite(path, load_file(path), name="resnet9"),
        "network name: expected .* got resnet9",
    ),
    "no JSON": (
        lambda path: save_file(load_file(path), path, {"kdcache": "("}),
        "metadata: expected JSON",
    ),
    "wrong JSON": (lambda path: rewrite(path, load_file(path), mean=0.5), "in the metadata: expected"),
    "other key": (renamed, r"got fc\.scale, fc\.weight$"),
    "other shape": (lambda path: rewrite(path, load_file(path), num_classes=11), r"got fc\.bias, fc\.weight$"),
    "other depth": (lambda path: rewrite(path, load_file(path), name="resnet20"), r"layer1\.1\.\S+ and \d+ more$"),
    "other type": (
        lambda path: rewrite(path, {key: value.double() for key, value in load_file(path).items()}),
        "and 53 more$",
    ),
    "one bit": (flipped, "damaged or was altered: SHA-256"),
    "other mean": (reworded, "damaged or was altered: SHA-256"),
    "no checksum": (unchecked, "damaged or was altered: SHA-256"),
    "huge shape": (enlarged(shape=[2**60]), "a complete safetensors file"),
    "huge place": (enlarged(shape=[2**40], data_offsets=[0, 2**42]), "a complete safetensors file"),
    "nested metadata": (
        lambda path: save_file(load_file(path), path, {"kdcache": "[" * 100_000}),
        "metadata: expected JSON",
    ),
    "huge network": (
        lambda path: rewrite(path, load_file(path), name="torchvision:vit_h_14", image_size=224),
        "tensors missing, unknown",
    ),
    "many classes": (lambda path: rewrite(path, load_file(path), num_classes=10**6), r"got fc\.bias, fc\.weight$"),
    "absurdly many": (lambda path: rewrite(path, load_file(path), num_classes=10**12), "number of classes"),
    "huge images": (lambda path: rewrite(path, load_file(path), image_size=10**6), "image size"),
    "true for a number": (lambda path: rewrite(path, load_file(path), num_classes=True), "in the metadata: expected"),
    "code": (lambda path: rewrite(path, load_file(path), name="python:os:system"), "If you trust it"),
    "too few names": (lambda path: rewrite(path, load_file(path), class_names=["one"]), "number of class names"),
    "terminal codes": (
        lambda path: rewrite(path, load_file(path), name="\x1b[2Jresnet\n8"),
        r"got \\x1b\[2Jresnet\\n8\. Did you mean resnet8\?$",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_checkpoint_gives_one_message(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    checkpoint.save(network(), path)
    spoil, message = DAMAGES[damage]
    spoil(path)
    with pytest.raises(UsageError, match=message) as caught:
        checkpoint.load(path)
    assert len(caught.value.problems) == 1
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_depends_on_tensors_and_description_alone() -> None:
    net = network()
    known = checkpoint.fingerprint(net)
    net.body.to(memory_format=torch.contiguous_format)
    assert checkpoint.fingerprint(net) == known
    net.body.to(memory_format=torch.channels_last)
    assert checkpoint.fingerprint(net) == known
    state = net.body.state_dict()
    for other in (
        build("resnet8", num_classes=10, mean=MEAN, std=(*STD[:2], 0.2762)),
        build("resnet8", num_classes=10, mean=(0.5072, *MEAN[1:]), std=STD),
        build("resnet8", num_classes=10, mean=MEAN, std=STD, image_size=64),
    ):
        other.body.load_state_dict(state)
        assert checkpoint.fingerprint(other) != known
    for key in ("layer2.0.conv1.weight", "bn1.running_var", "bn1.num_batches_tracked"):
        one = state[key].view(-1)[:1] if state[key].ndim < 2 else state[key][:1, :1, :1, :1]
        saved = one.clone()
        one += 1
        assert checkpoint.fingerprint(net) != known, key
        one.copy_(saved)
    assert checkpoint.fingerprint(net) == known


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    checkpoint.save(network(), path)
    old = path.read_bytes()

    def half(temporary: Path) -> None:
        temporary.write_bytes(old[: len(old) // 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_text_and_json_are_written_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": [1, "é"]})
    assert path.read_text(encoding="utf-8").endswith("\n}\n")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, "é"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()


def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.save(network(), tmp_path / "net.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o640


def test_initial_weights_do_not_depend_on_other_threads() -> None:
    def first_weights(seed: int) -> list[float]:
        network = build("resnet20", num_classes=3, seed=seed)
        return [float(tensor.detach().sum()) for tensor in network.parameters()]

    expected = [first_weights(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(first_weights, range(16))) == expected
