"""Write ``fashion-mini.h5``: 600 Fashion-MNIST training images per class, and all the test images."""

import argparse
import gzip
import hashlib
from pathlib import Path

import h5py
import numpy as np

SEED = 2017
PER_CLASS = 600
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ATTRIBUTES = {
    "format": "kdcache-packed",
    "version": 1,
    "class_names": CLASS_NAMES,
    "source": "Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), https://github.com/zalandoresearch/fashion-mnist",
    "licence": "MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
}


def read_idx(source: Path, name: str) -> np.ndarray:
    """Read `name` under `source`, gzipped or not: two zero bytes, type 8 (uint8), dimensions, big-endian sizes."""
    plain = source / name
    data = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(f"{name}.gz").read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{plain} is not an idx file of uint8")
    start = 4 + 4 * data[3]
    return np.frombuffer(data, np.uint8, offset=start).reshape(np.frombuffer(data[4:start], ">i4"))


def choose(labels: np.ndarray) -> np.ndarray:
    """Return the indices of the chosen images in ascending order.

    Within a class, those with the lowest SHA-256 of "seed class index": unlike a pseudo-random generator, this gives
    the same choice with every version of every library.
    """

    chosen: list[int] = []
    for label in range(len(CLASS_NAMES)):
        rank = {
            index: hashlib.sha256(f"{SEED} {label} {index}".encode()).digest()
            for index in np.flatnonzero(labels == label).tolist()
        }
        chosen += sorted(rank, key=rank.__getitem__)[:PER_CLASS]
    return np.array(sorted(chosen), "<i8")


def write(out: Path, splits: dict[str, dict[str, np.ndarray]]) -> None:
    """Write the packed file; the same arrays give the same bytes with the same HDF5 version."""
    with h5py.File(out, "w") as file:
        file.attrs.update(ATTRIBUTES)
        for split, arrays in splits.items():
            for name, array in arrays.items():
                file.create_dataset(
                    f"{split}/{name}",
                    data=array,
                    chunks=(min(len(array), 1000), *array.shape[1:]),
                    compression="gzip",
                    compression_opts=9,
                    shuffle=True,
                    track_times=False,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of the four idx or idx.gz files")
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file to write")
    options = parser.parse_args()

    images, labels = (read_idx(options.source, f"train-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
    test_images, test_labels = (
        read_idx(options.source, f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1")
    )
    index = choose(labels)
    train = {"images": images[index, ..., None], "labels": labels[index].astype("<i8"), "source_index": index}
    test = {"images": test_images[..., None], "labels": test_labels.astype("<i8")}
    write(options.out, {"train": train, "test": test})
    content = options.out.read_bytes()
    print(f"{options.out}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
