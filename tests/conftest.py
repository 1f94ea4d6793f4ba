"""Fixtures of several test modules: a small dataset, a teacher trained on it, and a browser."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import matplotlib
import pytest
import torch
from kdcache.stages import train_teacher

from kdcache import machine
from kdcache.config import TeacherConfig
from kdcache.datasets import Split
from tests import quick  # noqa: F401
from tests.samples import small_settings, write_pictures

gc.freeze()  # what is imported by now need not be searched for garbage again and again
gc.set_threshold(20_000, 20, 20)
torch.set_num_threads(1)  # there is a test process for each core
hypothesis.settings.register_profile("no deadline", deadline=None)  # other processes may need the cores
hypothesis.settings.load_profile("no deadline")


LONGEST = ("test_study_runs", "test_export", "test_training", "test_distributed", "test_cached_teacher")
"""The files that take longest, which xdist begins with: no core waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, and leave the order of the others."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_xdist_auto_num_workers() -> int:
    """Start one process more than there are cores, since many tests wait for processes that they started."""
    return machine.cores() + 1


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session", autouse=True)
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep manifests of the tests out of the user's cache folder, also in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())  # with its cache of fonts
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no training report those of other tests."""
    monkeypatch.setattr(machine, "other_trainings", lambda: [])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder dataset of three classes, 30 training and 10 test images each, 32x32, noisy but easy to tell apart."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def small(pictures: Path) -> dict[str, object]:
    """Settings of a training that takes a second."""
    return small_settings(pictures)


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


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed: the report is not opened in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which root cannot have
        opened = driver.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket on the loopback address."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("obstore")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    boto3.client("s3").create_bucket(Bucket="answers")
    yield "s3://answers"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()
