"""Worker processes: the message if one dies, and that none is left behind."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdcache.datasets.workers import prefetch_map
from kdcache.errors import KdcacheError
from tests.processes import outcome, start_command, start_process
from tests.samples import write_imagenet

Settings = dict[str, Any]


def gone(process: Path) -> bool:
    """Whether a process has ended, even if it is a zombie."""
    with suppress(OSError):
        return "State:\tZ" in (process / "status").read_text()
    return True


def test_the_death_of_a_worker_is_raised_where_its_result_is_awaited() -> None:
    before = set(multiprocessing.active_children())
    squares = prefetch_map(partial(pow, 2), range(1000), workers=2)
    assert next(squares) == 1
    victim = max(set(multiprocessing.active_children()) - before, key=lambda child: child.name)
    victim.kill()
    while not gone(Path("/proc", str(victim.pid))):  # must not raise here
        time.sleep(0.002)
    with pytest.raises(KdcacheError, match=r"a worker process died: got DataLoader worker .*fewer --workers"):
        list(squares)


STARTED: list[Iterator[int]] = []


def exit_with_workers() -> None:
    """Start workers and exit while they work, as after an error whose traceback refers to them."""
    STARTED.append(prefetch_map(partial(pow, 2), range(1000), workers=2))
    next(STARTED[0])


def test_a_process_with_busy_workers_exits() -> None:
    process = start_process(exit_with_workers)
    process.join(30)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def decoding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, Any]]:
    """The settings of a training that decodes images on demand, and its outcome without interruption."""
    root = tmp_path_factory.mktemp("decoding")
    write_imagenet(root / "imagenet", train=24)
    settings: Settings = {"dataset": "imagenet", "data_root": root, "image_size": 32, "model": "resnet8"}
    settings |= {"batch_size": 4, "device": "cpu", "precision": "float32", "epochs": 3}
    whole = start_command("teacher-train", settings | {"workers": 0, "out": root / "whole"}).wait()
    assert whole.returncode == 0, whole.stderr
    return settings, outcome(root / "whole")


@pytest.mark.parametrize(
    ("send", "number", "workers"),
    [(os.kill, signal.SIGTERM, 0), (os.killpg, signal.SIGTERM, 2), (os.killpg, signal.SIGUSR1, 0)],
)
def test_a_terminated_training_leaves_no_workers_and_is_resumed(
    send: Callable[[int, int], None],
    number: int,
    workers: int,
    decoding: tuple[Settings, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """The signal comes to the process or its group, and the run is resumed with another number of workers."""
    settings = decoding[0] | {"workers": 2, "out": tmp_path / "run"}
    training = start_command("teacher-train", settings, daemon=False)
    while training.process.is_alive() and not (
        list(tmp_path.glob("run/checkpoints/epoch-0000001-*")) and len(training.children()) == 2
    ):
        time.sleep(0.002)
    children = training.children()
    assert training.process.pid and training.process.is_alive()  # noqa: PT018
    send(training.process.pid, number)
    stopped = training.wait(60)
    assert (stopped.returncode, len(children)) == (143, 2)
    assert stopped.stderr == "kdcache: stopped. Completed work is saved. Resume a training with --resume.\n"
    assert all(map(gone, children))
    assert not max(tmp_path.glob("run/checkpoints/*")).name.endswith("step-0000000.safetensors")  # within an epoch
    again = start_command("teacher-train", settings | {"resume": True, "workers": workers}, daemon=False).wait()
    assert again.returncode == 0, again.stderr
    assert outcome(tmp_path / "run") == decoding[1]
