"""Processes that do work ahead: what is told where one dies, and that none is left behind."""

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
from tests.processes import begun, outcome, started
from tests.samples import write_imagenet

Settings = dict[str, Any]


def gone(process: Path) -> bool:
    """Tell whether a process has ended, be it that nobody has asked how."""
    with suppress(OSError):
        return "State:\tZ" in (process / "status").read_text()
    return True


def test_a_worker_that_died_is_told_where_its_work_is_waited_for() -> None:
    before = set(multiprocessing.active_children())
    squares = prefetch_map(partial(pow, 2), range(1000), workers=2)
    assert next(squares) == 1
    victim = max(set(multiprocessing.active_children()) - before, key=lambda child: child.name)
    victim.kill()
    while not gone(Path("/proc", str(victim.pid))):  # hearing of it here, in the midst of other work, would help nobody
        time.sleep(0.002)
    with pytest.raises(KdcacheError, match=r"a worker process died: got DataLoader worker .*fewer --workers"):
        list(squares)


KEPT: list[Iterator[int]] = []


def leave_at_work() -> None:
    """Begin work in workers, and come to an end without a word to them, as after an error that somebody holds on to."""
    KEPT.append(prefetch_map(partial(pow, 2), range(1000), workers=2))
    next(KEPT[0])


def test_a_process_ends_also_where_workers_are_at_work() -> None:
    process = started(leave_at_work)
    process.join(30)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def decoding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, Any]]:
    """The settings of a training that decodes pictures as it goes, and what comes of it where nobody disturbs it."""
    root = tmp_path_factory.mktemp("decoding")
    write_imagenet(root / "imagenet", train=24)
    settings: Settings = {"dataset": "imagenet", "data_root": root, "image_size": 32, "model": "resnet8"}
    settings |= {"batch_size": 4, "device": "cpu", "precision": "float32", "epochs": 3}
    whole = begun("teacher-train", settings | {"workers": 0, "out": root / "whole"}).ended()
    assert whole.returncode == 0, whole.stderr
    return settings, outcome(root / "whole")


@pytest.mark.parametrize(("send", "workers"), [(os.kill, 0), (os.killpg, 2)])
def test_a_training_with_workers_that_is_terminated_leaves_none_behind(
    send: Callable[[int, int], None], workers: int, decoding: tuple[Settings, dict[str, Any]], tmp_path: Path
) -> None:
    """Signals come from who started it or to all of its group; what was begun with workers goes on without, too."""
    settings = decoding[0] | {"workers": 2, "out": tmp_path / "run"}
    training = begun("teacher-train", settings, daemon=False)
    while training.process.is_alive() and not (
        list(tmp_path.glob("run/checkpoints/epoch-0000001-*")) and len(training.children()) == 2
    ):
        time.sleep(0.002)
    children = training.children()
    assert training.process.pid and training.process.is_alive()  # noqa: PT018
    send(training.process.pid, signal.SIGTERM)
    stopped = training.ended(60)
    assert (stopped.returncode, len(children)) == (143, 2)
    assert stopped.stderr == "kdcache: stopped. Completed work is saved. Resume a training with --resume.\n"
    assert all(map(gone, children))
    assert not max(tmp_path.glob("run/checkpoints/*")).name.endswith("step-0000000.safetensors")  # where it was
    again = begun("teacher-train", settings | {"resume": True, "workers": workers}, daemon=False).ended()
    assert again.returncode == 0, again.stderr
    assert outcome(tmp_path / "run") == decoding[1]
