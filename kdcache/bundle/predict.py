"""Predict the classes of pictures with the exported network beside this file.

It needs numpy, Pillow and onnxruntime alone. Classes and preprocessing are read from the metadata of the network.

    python predict.py                        predict the test picture, and compare the answer with expected.json
    python predict.py PICTURE...             predict pictures
    python predict.py --model model-int8.onnx PICTURE...
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent

FACTS = ("class_names", "image_size", "shorter_side", "interpolation")
"""What is read from the metadata of a network."""

TOLERANCE = {"model.onnx": 0.001, "model-int8.onnx": 0.1}
"""Largest difference from the expected probability: processors round differently, most of all in int8."""

MAX_PIXELS = 2**26
"""Largest size to which a picture is resized; one long and thin would take all memory."""


def load(path: Path) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """Load a network, and what its file states about it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    return session, {name: json.loads(stated[name]) for name in FACTS}


def read_pixels(path: Path, image_size: int, shorter_side: int, interpolation: str) -> np.ndarray:
    """Read a picture: upright, in RGB, resized, its center: uint8 (1, 3, image_size, image_size)."""
    with Image.open(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits per channel")
        rgb = ImageOps.exif_transpose(picture).convert("RGB")
    shorter = min(rgb.size)
    width, height = (shorter_side if side == shorter else int(shorter_side * side / shorter) for side in rgb.size)
    if width * height > MAX_PIXELS:
        raise ValueError(f"its shape takes {width} x {height} pixels")
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    pixels = np.asarray(rgb.crop((left, top, left + image_size, top + image_size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def predict(session: onnxruntime.InferenceSession, stated: dict[str, Any], path: Path) -> list[tuple[str, float]]:
    """Predict a picture: the classes and their probabilities, the most probable one first."""
    pixels = read_pixels(path, *(stated[name] for name in FACTS[1:]))
    (probabilities,) = session.run(None, {"images": pixels})[0]
    order = np.argsort(-probabilities, kind="stable")
    return [(stated["class_names"][label], float(probabilities[label])) for label in order]


def check() -> int:
    """Predict the test picture with each network; return 1 if an answer is not the expected one."""
    expected = json.loads((FOLDER / "expected.json").read_text("utf-8"))
    wrong = 0
    for model, answer in expected["answers"].items():
        name, probability = predict(*load(FOLDER / model), FOLDER / expected["picture"])[0]
        good = name == answer["class"] and abs(probability - answer["probability"]) <= TOLERANCE[model]
        wrong += not good
        verdict = "as expected" if good else f"expected {answer['class']} {answer['probability']:.3f}"
        print(f"{model}: {name} {probability:.3f}, {verdict}")
    return int(wrong > 0)


def main() -> int:
    """Run the command line; return 1 if a picture cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    parser.add_argument("--model", type=Path, default=FOLDER / "model.onnx", help="file of the network")
    parser.add_argument("--top", type=int, default=5, help="number of classes (default: 5)")
    options = parser.parse_args()
    if not options.pictures:
        return check()
    network, failed = load(options.model), 0
    for path in options.pictures:
        try:
            answers = predict(*network, path)
        except Exception as error:  # Pillow raises SyntaxError too
            print(f"could not read {path}: {error}", file=sys.stderr)
            failed = 1
            continue
        print(f"{path}: {', '.join(f'{name} {probability:.3f}' for name, probability in answers[: options.top])}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
