"""Fixtures of several test modules: a small dataset, and a teacher trained on it."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from kdcache.stages import train_teacher
from PIL import Image

from kdcache.config import TeacherConfig
from kdcache.datasets import Split

CLASSES = ("bright", "dark", "striped")

torch.set_num_threads(1)  # there is a test process for each core


@pytest.fixture(scope="session", autouse=True)
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep manifests of the tests out of the user's cache folder, also in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())  # with its cache of fonts
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder dataset of three classes, 30 training and 10 test images each, 32x32, noisy but easy to tell apart."""
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.Generator(np.random.Philox(5))
    for split, count in (("train", 30), ("val", 10)):
        for shade, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 90, (32, 32, 3)) + 60 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def small(pictures: Path) -> dict[str, object]:
    """Settings of a training that takes a second."""
    return {
        "dataset": f"folder:{pictures}",
        "image_size": 32,
        "model": "resnet8",
        "epochs": 1,
        "batch_size": 32,
        "device": "cpu",
        "precision": "float32",
    }


@pytest.fixture(scope="session")
def teacher(small: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a teacher of `pictures`."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    return train_teacher(TeacherConfig.load(**{**small, "seed": 9, "out": out})).path


@pytest.fixture(scope="session")
def noise() -> Split:
    """A split of 150 random images in 4 classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (150, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, 4, (150,), generator=generator))
