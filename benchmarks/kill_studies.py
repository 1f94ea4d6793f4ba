"""Kill a study five times at random moments, go on with it, and see that it ends with the same table and bits.

Each time with its trainings, as when a machine goes down, or alone, so that they go on without it, and the next study
finds them at work. The table goes to the standard output::

    python benchmarks/kill_studies.py --studies 4 > docs/results/kill_studies.md
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from kills import pictures, print_table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.processes import outcome  # which is not on the path
from tests.studies import RUNS, read_results, start_study, training_processes, write_study

KILLS = 5


def main() -> None:
    """Kill, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = pictures(root / "data")
        whole, seconds = unbroken(root / "whole", data)
        rows = [
            (place + 1, *trial(root / str(place), data, whole, seconds, moments)) for place in range(chosen.studies)
        ]
    text = """# Studies that were killed

Four students of a teacher, which is trained too, two at once. The study gets SIGKILL five times, each time at a random
moment of the next third of the time that it takes; orphans are trainings that went on where it was killed alone.
"""
    what = ("study", "kills", "with its trainings", "alone", "orphans", "the same table", "runs with the same bits")
    print_table(text, what, rows)


def unbroken(folder: Path, data: Path) -> tuple[Path, float]:
    """Carry the study out: its folder, and how many seconds it took."""
    folder.mkdir()
    write_study(folder, data)
    began = time.perf_counter()
    assert start_study(folder).ended().returncode == 0
    return folder, time.perf_counter() - began


def trial(folder: Path, data: Path, whole: Path, seconds: float, moments: random.Random) -> tuple[object, ...]:
    """Kill one study five times, and let it come to its end: the row of the table."""
    folder.mkdir()
    write_study(folder, data)
    kills = together = orphans = 0
    while kills < KILLS:
        study = start_study(folder)
        study.process.join(moments.uniform(0, seconds / 3))
        if study.process.exitcode is not None:
            break
        study.kill()
        kills += 1
        if kills % 2:
            orphans += len(training_processes(folder))
            continue
        together += 1
        for number in training_processes(folder):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    assert start_study(folder).ended().returncode == 0
    equal = sum(
        outcome(folder / "studies" / "small" / run) == outcome(whole / "studies" / "small" / run)
        for run in RUNS.values()
    )
    same = "yes" if read_results(folder) == read_results(whole) else "no"
    return kills, together, kills - together, orphans, same, f"{equal} of {len(RUNS)}"


if __name__ == "__main__":
    main()
