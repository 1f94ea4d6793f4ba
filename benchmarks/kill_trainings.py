"""Kill trainings at random moments, go on with each, and see that all end with the same bits.

The moments are uniform over the time that a training takes; two of five kills wait for a write, of a checkpoint, of the
record or of the store, and fall into it::

    python benchmarks/kill_trainings.py --kills 120 > docs/results/reliability.md
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from common import footer
from kdcache.stages import train_teacher
from kill_fills import pictures

from kdcache.config import TeacherConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.processes import outcome, start  # which is not on the path

Settings = dict[str, Any]

TRAININGS: dict[str, Settings] = {
    "teacher": {},
    "student, cutmix-pick, no store": {"aug": "cutmix-pick", "cache": "off"},
    "student, cutmix-pick, replay": {"aug": "cutmix-pick", "cache": "replay"},
    "student, crd+kd, no store": {"aug": "cutmix-pick", "loss": "crd+kd", "cache": "off"},
    "student, crd+kd, replay, store half filled by another": {
        "aug": "cutmix-pick",
        "loss": "crd+kd",
        "cache": "replay",
    },
}


def main() -> None:
    """Kill, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        small = {"dataset": f"folder:{pictures(root / 'data')}", "image_size": 32, "model": "resnet8", "device": "cpu"}
        teacher = train_teacher(TeacherConfig.load(**small, epochs=1, out=root / "teacher")).path
        finish(start("teacher", **small, epochs=1, out=root / "warm"))  # so that no time below holds the imports
        rows = [
            trial(training, small, teacher, root / str(place), chosen.kills // len(TRAININGS), moments)
            for place, training in enumerate(TRAININGS)
        ]
    print("""# Trainings that were killed

Each training of a ResNet8 on 90 small images takes 4 epochs of 30 steps, with a checkpoint every 20 steps and at the
end of each epoch, and gets SIGKILL at a random moment; it is gone on with by `--resume`, and killed again, until it
comes to its end. "In a write": an unfinished file of a checkpoint, of the record or of the store was left behind.
"Equal ends": network, metrics, statistics and clean answers are the bits of a training that was never killed.

| training | kills | in a write | before the first checkpoint | ends | equal ends |
| --- | --- | --- | --- | --- | --- |""")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(footer())


def trial(
    training: str, small: Settings, teacher: Path, root: Path, kills: int, moments: random.Random
) -> tuple[object, ...]:
    """Kill one kind of training so many times: the row of the table."""
    kind = training.partition(",")[0]
    settings = {**small, "epochs": 4, "batch_size": 3, "checkpoint_minutes": 1e-6, **TRAININGS[training]}
    if kind == "student":
        settings["teacher"] = teacher
    root.mkdir()
    began = time.perf_counter()
    finish(start(kind, **settings, **store(settings, root / "whole.zarr"), out=root / "whole"))
    seconds, expected = time.perf_counter() - began, outcome(root / "whole")
    counts: Counter[str] = Counter()
    seen: set[Path] = set()
    while counts["kills"] < kills:
        name = f"run-{counts['ends']}"
        place = store(settings, root / f"{name}.zarr")
        if "half filled" in training and not (root / f"{name}.zarr").exists():
            half = {key: value for key, value in settings.items() if key != "loss"}
            stop(start("fill", **half, **place), seconds / 4)
        process = start(kind, **settings, **place, out=root / name, resume=True)
        wait(process, root, moments.uniform(0, seconds), for_a_write=counts["kills"] % 5 < 2)
        if process.exitcode is None:
            process.kill()
            process.join()
            counts["kills"] += 1
            litter = {path for path in root.rglob("*") if path.name.endswith((".tmp", ".partial"))}
            counts["in a write"] += bool(litter - seen)
            seen |= litter
            counts["early"] += not any((root / name).glob("checkpoints/epoch-*"))
        if (root / name / "summary.json").exists():
            ended(counts, root / name, expected)
    name = f"run-{counts['ends']}"
    finish(start(kind, **settings, **store(settings, root / f"{name}.zarr"), out=root / name, resume=True))
    ended(counts, root / name, expected)
    return (training, *(counts[word] for word in ("kills", "in a write", "early", "ends", "equal")))


def store(settings: Settings, where: Path) -> Settings:
    """Give a training a store of its own, if it has one."""
    return {"store": str(where)} if settings.get("cache") == "replay" else {}


def wait(process: BaseProcess, root: Path, seconds: float, for_a_write: bool) -> None:
    """Wait a while, and then perhaps for a file that is being written: one that was not there before."""
    process.join(seconds)
    before, patience = unfinished(root), time.monotonic() + 1
    while for_a_write and process.is_alive() and time.monotonic() < patience:
        if unfinished(root) - before:
            return


def unfinished(root: Path) -> set[Path]:
    """Find the files that are being written, or were when their writer was killed."""
    patterns = ("*/.*.tmp", "*/checkpoints/.*.tmp", "*.zarr/**/*.partial", "*/statistics.zarr/**/*.partial")
    return {path for pattern in patterns for path in root.glob(pattern)}


def stop(process: BaseProcess, seconds: float) -> None:
    """Let a process work for a while, and kill it."""
    process.join(seconds)
    process.kill()
    process.join()


def finish(process: BaseProcess) -> None:
    """Let a process come to its end, which must be a good one."""
    process.join()
    assert process.exitcode == 0


def ended(counts: Counter[str], run: Path, expected: Settings) -> None:
    """Compare a run that came to its end."""
    counts["ends"] += 1
    counts["equal"] += outcome(run) == expected


if __name__ == "__main__":
    main()
