"""Kill trainings, precomputations and studies at random moments, resume them, and compare with undisturbed ones.

`benchmarks/kill.py` does this many times, the tests a few.
"""

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

from kdcache import training
from kdcache.run.folder import FinishedRun
from tests.alterations import DAMAGES, damage_file
from tests.processes import outcome, run_stage, start_process
from tests.samples import write_unlabelled
from tests.store_files import partial_writes, read_chunks, read_committed
from tests.studies import RUNS, read_results, start_study, training_processes, wait_until, write_study

Settings = dict[str, Any]


class Job(ABC):
    """Work that can be killed and resumed until it is finished, and then begins anew.

    Attributes
    ----------
    seconds : float
        How long the job takes undisturbed.
    counts : Counter of str
        What happened so far: "kills"; "finished" jobs, and how many of them have an "equal" outcome; and more.
    """

    seconds: float
    counts: Counter[str]

    @abstractmethod
    def start(self) -> list[BaseProcess]:
        """Start the job, or resume it."""

    @abstractmethod
    def progress(self) -> object:
        """Return something that changes when the job saves work."""

    @abstractmethod
    def compare(self) -> None:
        """Count the finished job, compare it with the undisturbed one, and let the next start begin anew."""

    def kill(self, processes: list[BaseProcess], rng: Random) -> int:
        """Kill the processes that are still running, and return how many there were."""
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        assert {process.exitcode for process in processes} <= {0, -signal.SIGKILL}
        return sum(process.exitcode != 0 for process in processes)


def kill_and_resume(job: Job, kills: int, rng: Random) -> Counter[str]:
    """Kill a job so many times, and let it finish then.

    One kill comes at any moment of the job's time, counted from the start, and the next one soon after the job has
    saved work, so that it makes progress.
    """
    while job.counts["kills"] < kills:
        saved = job.progress()
        processes = job.start()
        if job.counts["kills"] % 2:
            _wait(processes, rng.uniform(0, job.seconds))
        else:
            while job.progress() == saved and any(process.is_alive() for process in processes):
                time.sleep(0.005)
            _wait(processes, rng.uniform(0, job.seconds / 4))
        killed = job.kill(processes, rng)
        job.counts["kills"] += killed
        if not killed:
            job.compare()
    for process in job.start():
        process.join()
        assert process.exitcode == 0
    job.compare()
    return job.counts


def _wait(processes: list[BaseProcess], seconds: float) -> None:
    """Wait for the end of all processes, but no longer than some seconds."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


class Training(Job):
    """A training that saves a checkpoint after each step.

    Parameters
    ----------
    kind : str
        "teacher" or "student".
    settings : dict
        All settings but those of the run folder and the store.
    folder : Path
        Existing folder for the runs and their stores.
    half_precomputed : bool
        Whether another process begins to fill each run's store.
    """

    def __init__(self, kind: str, settings: Settings, folder: Path, half_precomputed: bool = False) -> None:
        self.kind, self.settings = kind, {**settings, "checkpoint_minutes": 1e-6}
        self.folder, self.half_precomputed, self.counts = folder, half_precomputed, Counter(kills=0)
        self.run = self.undisturbed = folder / "undisturbed"
        began = time.perf_counter()
        (process,) = self.start()
        process.join()
        assert process.exitcode == 0
        self.seconds, self.expected = time.perf_counter() - began, outcome(self.run)
        self.run = folder / "run-0"

    def start(self) -> list[BaseProcess]:
        settings = {**self.settings, "out": self.run, "resume": True}
        if self.kind == "student" and self.settings.get("cache") != "off":
            store = self.run.with_suffix(".zarr")
            settings["store"] = str(store)
            if self.half_precomputed and self.run != self.undisturbed and not store.exists():
                filling = {**settings, "loss": "kd", "resume": False}
                precomputing = start_process(run_stage, "precompute", filling, daemon=True)
                _wait([precomputing], self.seconds / 4)
                super().kill([precomputing], Random())
        self._partial = set(partial_writes(self.folder))
        return [start_process(_train_with_a_checkpoint_per_step, self.kind, settings, daemon=True)]

    def progress(self) -> str:
        return max((path.name for path in self.run.glob("checkpoints/epoch-*")), default="")

    def kill(self, processes: list[BaseProcess], rng: Random) -> int:
        killed = super().kill(processes, rng)
        self.counts["partial writes"] += killed and bool(set(partial_writes(self.folder)) - self._partial)
        self.counts["before the first checkpoint"] += killed and not self.progress()
        return killed

    def compare(self) -> None:
        places = FinishedRun(self.run).summary["resumed"]
        left = [path for path in self.run.iterdir() if path.name == "checkpoints" or path.suffix == ".tmp"]
        self.counts["resumed"] += any(place["epoch"] > 1 or place["step"] > 0 for place in places)
        self.counts["equal"] += outcome(self.run) == self.expected and not left
        self.counts["finished"] += 1
        self.run = self.folder / f"run-{self.counts['finished']}"


RECIPE: Settings = {
    **{"optimizer": "adamw", "lr": 0.003, "decay_norm_and_bias": False, "schedule": "cosine", "min_lr": 1e-5},
    **{"warmup_epochs": 0.5, "freeze_epochs": 1, "ema": 0.9, "clip_grad": 0.5, "label_smoothing": 0.1},
    "class_weights": "balanced",
}

TRAININGS: dict[str, Settings] = {
    "teacher": {},
    "student, cutmix-pick, no store": {"aug": "cutmix-pick", "cache": "off"},
    "student, cutmix-pick, replay": {"aug": "cutmix-pick", "cache": "replay"},
    "student, crd+kd, no store": {"aug": "cutmix-pick", "loss": "crd+kd", "cache": "off"},
    "student, crd+kd, half precomputed": {"aug": "cutmix-pick", "loss": "crd+kd", "cache": "replay"},
    "student, AdamW, cosine, EMA, frozen, unlabelled": {"aug": "cutmix-pick", "cache": "replay", **RECIPE},
}


def make_training(name: str, settings: Settings, teacher: Path, folder: Path) -> Training:
    """Make one of the `TRAININGS`, with settings of the dataset, the network and the device."""
    kind, _, _ = name.partition(",")
    settings = {**settings, **TRAININGS[name], "epochs": 2, "batch_size": 6}
    if kind == "student":
        settings["teacher"] = teacher
    if "freeze_epochs" in settings:
        settings["init"] = str(teacher)
        settings["unlabelled"] = f"folder:{write_unlabelled(folder / 'unlabelled')}"
    return Training(kind, settings, folder, name.endswith("half precomputed"))


def _train_with_a_checkpoint_per_step(kind: str, settings: Settings) -> None:
    training.LOSS_CHECK_STEPS = 1  # without influence on the result
    run_stage(kind, settings)


class Precomputation(Job):
    """Processes that precompute a teacher's logits into one store: one, two at a time, or one and damaged files.

    Parameters
    ----------
    name : str
        One of the `PRECOMPUTATIONS`.
    settings : dict
        Of the dataset and the device.
    teacher, folder : Path
        Run folder of the teacher, and existing folder for the stores.
    epochs : int
        Each has three tables of one chunk.
    """

    def __init__(self, name: str, settings: Settings, teacher: Path, folder: Path, epochs: int) -> None:
        self.settings = {**settings, "teacher": teacher, "aug": "cutmix-pick", "cache": "replay", "epochs": epochs}
        self.processes, self.damages = PRECOMPUTATIONS[name]
        self.folder, self.counts = folder, Counter(kills=0, lost=0)
        self.store = folder / "undisturbed.zarr"
        began = time.perf_counter()
        for process in self.start():
            process.join()
            assert process.exitcode == 0
        self.seconds, self.expected = time.perf_counter() - began, read_chunks(self.store)
        assert len(self.expected) == 2 * 3 * epochs  # logits and commit records
        self.store = folder / "store.zarr"
        self._damaged: set[str] = set()

    def start(self) -> list[BaseProcess]:
        self._committed, self._partial = read_committed(self.store), set(partial_writes(self.store))
        settings = {**self.settings, "store": str(self.store)}
        return [start_process(run_stage, "precompute", settings, daemon=True) for _ in range(self.processes)]

    def progress(self) -> int:
        return sum(1 for _ in self.store.glob("replay/*/*/*/commits/c/*/0"))

    def kill(self, processes: list[BaseProcess], rng: Random) -> int:
        killed = super().kill(processes, rng)
        self.counts["partial writes"] += killed and bool(set(partial_writes(self.store)) - self._partial)
        found = read_committed(self.store)
        for name, content in self._committed.items():
            if name not in self._damaged:
                self.counts["lost"] += found.get(name) != content
        self._damaged = set()
        if self.damages and killed and found:
            victim = rng.choice(sorted(found))
            damage_file(self.store / victim, rng.choice(sorted(DAMAGES)))
            self._damaged = {victim.replace("/commits/", "/logits/"), victim.replace("/logits/", "/commits/")}
            self.counts["damaged"] += 1
        return killed

    def compare(self) -> None:
        self.counts["equal"] += read_chunks(self.store) == self.expected
        self.counts["finished"] += 1
        shutil.rmtree(self.store)


PRECOMPUTATIONS = {"one process": (1, False), "two processes": (2, False), "one process, files damaged": (1, True)}
"""Number of processes, and whether a file is damaged after each kill."""


class Study(Job):
    """A study of four students, two at a time, that is killed or interrupted in three ways in turn.

    Killed alone, it leaves trainings that keep running, for which the next start waits. Killed with all trainings, as
    when a machine goes down. Interrupted, it ends its own trainings.

    Parameters
    ----------
    pictures, undisturbed, folder : Path
        Folder dataset, folder of the same study, finished, and existing folder for the studies.
    """

    def __init__(self, pictures: Path, undisturbed: Path, folder: Path) -> None:
        self.pictures, self.undisturbed, self.folder = pictures, undisturbed, folder
        self.runs = [Path("studies", "small", run) for run in RUNS.values()]
        self.seconds = sum(FinishedRun(undisturbed / run).summary["seconds"] for run in self.runs) / 2
        self.counts = Counter(kills=0)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.study = self.folder / f"study-{self.counts['finished']}"
        self.study.mkdir()
        write_study(self.study, self.pictures)

    def start(self) -> list[BaseProcess]:
        self._trained_before = set(training_processes(self.study))
        self._command = start_study(self.study)
        return [self._command.process]

    def progress(self) -> frozenset[Path]:
        return frozenset(self.study.glob("studies/small/*/checkpoints/*.safetensors"))

    def kill(self, processes: list[BaseProcess], rng: Random) -> int:
        (process,) = processes
        way = ("alone", "with its trainings", "interrupted")[self.counts["kills"] % 3]
        if way != "with its trainings":
            wait_until(lambda: self._own_trainings() or not process.is_alive())
        if way == "interrupted" and process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            process.join()
            assert process.exitcode in (0, 130)
            assert not self._own_trainings()
        else:
            super().kill(processes, rng)
        if way == "alone":
            self.counts["trainings left running"] += len(training_processes(self.study))
        if way == "with its trainings":
            for training_process in training_processes(self.study):
                with suppress(ProcessLookupError):
                    os.kill(training_process, signal.SIGKILL)
        killed = int(process.exitcode != 0)
        self.counts[way] += killed
        return killed

    def _own_trainings(self) -> set[int]:
        return set(training_processes(self.study)) - self._trained_before

    def compare(self) -> None:
        equal = all(outcome(self.study / run) == outcome(self.undisturbed / run) for run in self.runs)
        self.counts["equal"] += equal and read_results(self.study) == read_results(self.undisturbed)
        self.counts["finished"] += 1
        self._begin_anew()
