"""Run folders that `tests.fuzz` alters: those that are read, and those that are resumed."""

import hashlib
import json
import logging
import shutil
import tomllib
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from kdcache.stages import train_student, train_teacher

from kdcache import checked_files
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError
from kdcache.report.progress import Reporter
from kdcache.run.contents import EpochMetrics
from kdcache.run.folder import FinishedRun, find_finished_runs
from kdcache.run.statistics_store import StatisticsReader
from kdcache.training import EpochProgress
from tests.alterations import alter_bytes, alter_document, alter_json, alter_store
from tests.altered_files import FileKind, Verdict, as_toml
from tests.samples import small_settings, write_pictures


class RunFolders(FileKind):
    """Run folders: settings, summary and metrics. Only what has a valid checksum is read as another value."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        numbers = {"epochs": 1, "last_top1": 50.0, "last_top5": 90.0, "best_top1": 50.0, "best_epoch": 1}
        counts = {"teacher_forwards": 3, "cache_hits": 4, "seconds": 1.5, "finished_at": 1e9}
        summary = {"kind": "teacher", "dataset": "cifar10", "model": "resnet8", **numbers, **counts}
        metrics = {"epoch": 1, "test_loss": 1.0, "test_top1": 50.0, "test_top5": 90.0, "seconds": 1.0}
        self.path = folder / "runs" / "one"
        self.path.mkdir(parents=True)
        checked_files.write_json(self.path / "summary.json", summary)
        checked_files.write_lines(self.path / "metrics.jsonl", [metrics])
        checked_files.write_toml(self.path / "config.toml", TeacherConfig.load(dataset="cifar10").to_toml())
        self.files = {path.name: path.read_bytes() for path in self.path.iterdir()}
        self.original = self.read(self.files)

    def read(self, files: dict[str, bytes]) -> tuple[object, ...]:
        for name, content in files.items():
            (self.path / name).write_bytes(content)
        find_finished_runs(self.path.parent)
        run = FinishedRun(self.path)
        return run.summary, run.read_metrics(), run.config

    def try_altered(self, rng: Random) -> Verdict:
        name = rng.choice(sorted(self.files))
        forged = rng.random() < 0.5
        alter = _forge if forged else alter_json if name != "config.toml" and rng.random() < 0.5 else alter_bytes
        found = self.read({**self.files, name: alter(self.files[name], rng)})
        if found == self.original:
            return Verdict("unchanged")
        return Verdict("different" if forged else "wrong", f"{name} is read as another one")


def _forge(content: bytes, rng: Random) -> bytes:
    """Alter a document, and give it a valid checksum."""
    if content.startswith(b"["):
        text = as_toml(alter_document(tomllib.loads(content.decode()), rng))
        return f"{text}# sha256 = {_sha256(text)}\n".encode("utf-8", "surrogatepass")
    document = json.loads(content)
    is_lines = document.pop("sha256") != _sha256(document)
    altered = alter_document(document, rng)
    if isinstance(altered, dict):
        altered = {**altered, "sha256": _sha256([altered] if is_lines else altered)}
    return json.dumps(altered).encode()


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class Interrupt(Reporter):
    """Ends a training in the second half of its second epoch, as a kill would."""

    def __init__(self) -> None:
        self.epoch = 0

    def end_epoch(self, metrics: EpochMetrics) -> None:
        self.epoch = metrics.epoch

    def step(self, event: EpochProgress) -> None:
        if self.epoch == 1 and event.steps_done > 20:
            raise InterruptedError


class ResumedRuns(FileKind):
    """Unfinished run folders. An altered one, resumed, ends as the whole one would have ended, or says what is lost."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        settings: dict[str, Any] = small_settings(write_pictures(folder / "pictures"))
        teacher = train_teacher(TeacherConfig.load(**settings, out=folder / "teacher")).path
        often = {"epochs": 2, "batch_size": 4, "checkpoint_minutes": 1e-6, "workers": 0, "cache": "off"}
        student = {**settings, **often, "teacher": teacher, "aug": "cutmix-pick"}
        self.original, self.path, self.outside = (folder / name for name in ("unfinished", "run", "outside"))
        with suppress(InterruptedError):
            train_student(StudentConfig.load(**student, out=self.original), Interrupt())
        self.outside.mkdir()
        (self.outside / "zarr.json").write_text("not of the run")
        self.files = sorted(str(path.relative_to(self.original)) for path in self.original.rglob("*") if path.is_file())
        assert len([name for name in self.files if name.startswith("checkpoints/")]) == 2
        self.warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("kdcache").addHandler(handler)
        logging.disable(logging.NOTSET)
        shutil.copytree(self.original, self.path)
        self.expected = self.resume()
        assert not self.warnings
        assert "damaged" not in self.expected.values()

    def resume(self) -> dict[str, object]:
        """Resume the run, and read everything of it that must not depend on where it was interrupted."""
        run = train_student(StudentConfig.load(out=self.path, resume=True))
        times = ("seconds", "images_per_second", "data_share", "teacher_share")
        metrics = [{**vars(line), **dict.fromkeys(times)} for line in run.read_metrics()]
        found: dict[str, object] = {"metrics": metrics, "network": run.network_file.read_bytes()}
        for name in ("epochs", "last_top1", "best_top1", "teacher_forwards", "cache_hits"):
            found[name] = run.summary[name]
        reader = StatisticsReader.open(run.statistics_store)
        for epoch in range(run.config.epochs):
            found[f"statistics {epoch}"] = "damaged"
            with suppress(KdcacheError):
                columns = [value for value in vars(reader.epoch(epoch)).values() if isinstance(value, np.ndarray)]
                found[f"statistics {epoch}"] = [column.tobytes() for column in columns]
        return found

    def try_altered(self, rng: Random) -> Verdict:
        self.path.unlink() if self.path.is_symlink() else shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.original, self.path)
        self.warnings.clear()
        name = rng.choice(self.files)
        self.alter(name, rng)
        try:
            found = self.resume()
        finally:
            (kept,) = self.outside.iterdir()
            assert kept.read_text() == "not of the run", "a file outside the run folder was changed"
        differing = [key for key, value in found.items() if value != self.expected[key]]
        if not differing:
            return Verdict("unchanged")
        named = self.warnings and all(found[key] == "damaged" for key in differing)
        return Verdict("named" if named else "wrong", f"{name}: {differing} differ, {self.warnings}")

    def alter(self, name: str, rng: Random) -> None:
        """Alter a file, or remove or replace it or its folder."""
        path = self.path / name
        match rng.randrange(8):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(b"")
            case 2:
                content = path.read_bytes()
                path.write_bytes(content[: rng.randrange(len(content) + 1)])
            case 3 if path.parent != self.path:
                shutil.rmtree(path.parent)
            case 4 if path.suffix == ".toml":
                document = alter_document(tomllib.loads(path.read_text()), rng)
                path.write_text(as_toml(document), "utf-8", "surrogatepass")
            case 4 | 5 if path.suffix in (".json", ".jsonl"):
                lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
                place = rng.randrange(len(lines))
                path.write_bytes(b"\n".join([*lines[:place], alter_json(lines[place], rng), *lines[place + 1 :]]))
            case _:
                alter_store(self.path, name, self.outside, rng)
