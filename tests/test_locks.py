"""Locks exclude threads as they exclude processes, and two trainings from one store ask the teacher once."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kdcache.stages import train_student

from kdcache import signals
from kdcache.config import StudentConfig
from kdcache.errors import UsageError
from kdcache.locks import FileLock
from kdcache.run.folder import FinishedRun, RunFolder
from tests.processes import outcome, start_training

Settings = dict[str, Any]


def in_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_threads_exclude_one_another_until_the_holder_releases(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    one, other = FileLock(file, "one"), FileLock(file, "other")
    assert one.acquire()
    assert other.acquire(wait=False)
    for name in ("one", "other", None):
        assert not in_thread(lambda name=name: FileLock(file, name).acquire(wait=False)), name
    other.release()
    file.read_bytes()  # which opens and closes the file
    assert not in_thread(lambda: FileLock(file, "one").acquire(wait=False))
    waiting = threading.Thread(target=FileLock(file, "one").acquire)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    one.release()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_run_folder_belongs_to_one_thread(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lock = folder.acquire_lock()
    assert folder.in_use()
    with pytest.raises(UsageError, match="not in use"):
        in_thread(folder.acquire_lock)
    lock.release()
    assert not folder.in_use()
    in_thread(folder.acquire_lock).release()


def hold_and_fork(file: Path, report: Any) -> None:
    with FileLock(file).held():
        if os.fork() == 0:
            report.send(os.getpid())
        time.sleep(60)


def test_a_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    arguments = (tmp_path / "lock", there)
    process = multiprocessing.get_context("fork").Process(target=hold_and_fork, args=arguments, daemon=True)
    process.start()
    child = here.recv()
    held = not FileLock(tmp_path / "lock").acquire(wait=False)
    process.kill()
    process.join()
    free = FileLock(tmp_path / "lock").acquire(wait=False)
    os.kill(child, signal.SIGKILL)
    assert (held, free) == (True, True)


def sharing(small: Settings, teacher: Path, tmp_path: Path) -> list[Settings]:
    """Settings of two students that see the same views, at the same time."""
    shared = {**small, "teacher": teacher, "aug": "cutmix-pick", "epochs": 4, "batch_size": 30}
    shared["store"] = str(tmp_path / "answers.zarr")
    return [shared | {"seed": seed, "view_seed": 0, "out": tmp_path / f"run-{seed}"} for seed in (0, 1)]


def check_sharing(students: list[Settings]) -> None:
    summaries = [FinishedRun(settings["out"]).summary for settings in students]
    views = 4 * 3 * 90
    assert sum(summary["teacher_forwards"] for summary in summaries) == views
    assert sum(summary["cache_hits"] for summary in summaries) == views


def test_two_threads_that_train_from_one_store_ask_once(small: Settings, teacher: Path, tmp_path: Path) -> None:
    students = sharing(small, teacher, tmp_path)
    together = threading.Barrier(2)

    def train(settings: Settings) -> None:
        config = StudentConfig.load(**settings)
        together.wait()
        train_student(config)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, students))
    check_sharing(students)
    alone = train_student(StudentConfig.load(**{**students[1], "cache": "off", "out": tmp_path / "alone"}))
    assert outcome(alone.path) == outcome(students[1]["out"])


def test_two_processes_that_train_from_one_store_ask_once(small: Settings, teacher: Path, tmp_path: Path) -> None:
    students = sharing(small, teacher, tmp_path)
    processes = [start_training("student", **settings) for settings in students]
    for process in processes:
        process.join()
    check_sharing(students)


def test_sigterm_waits_for_the_last_training_that_can_stop() -> None:
    with signals.defer_stop():
        with signals.defer_stop():
            pass
        signals.on_stop_signal(signal.SIGTERM, None)  # would raise Stopped outside
        assert signals.stop_requested()
        signals._stop_requested = False
