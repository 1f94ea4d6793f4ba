"""Check and time kdcache on a GPU in a few minutes: what tests without one cannot show.

    python benchmarks/gpu.py --out docs/results/gpu.md

Each result is written when it is there, as a line of JSON beside the page, and into the page. What does not fit into
``--limit-s`` is named as not measured. ``--device cpu`` only shows that everything works, in smaller sizes.
"""

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common import make_page, make_parser, table
from gpu_checks import check_compilation, check_teacher, check_trainings, check_views
from gpu_times import profile_step, time_evaluation, time_steps

from kdcache.choices import PRECISIONS
from kdcache.compute import Compute
from kdcache.errors import UsageError
from kdcache.files import write_text
from kdcache.machine import keep_freed_memory

LIMIT_SECONDS = 460

AGAIN_SECONDS = 5
"""The end is asked for again, in case that it came where an exception is lost."""

Row = dict[str, Any]


class Sizes(NamedTuple):
    """How much is measured.

    Attributes
    ----------
    pairs : tuple of str
        TEACHER:STUDENT.
    steps : int
        Steps of a measurement.
    repeats : int
    images : int
        Images of an evaluation.
    timed_in : tuple of str
        Precisions of the steps that are timed.
    trained_in : tuple of str
        Precisions of the small trainings that are compared bit by bit, besides that of ``auto``.
    """

    pairs: tuple[str, ...]
    steps: int
    repeats: int
    images: int
    timed_in: tuple[str, ...]
    trained_in: tuple[str, ...]


SIZES = {
    "cuda": Sizes(
        ("resnet56:resnet20", "wrn_40_2:wrn_16_2", "resnet32x4:resnet8x4"), 30, 3, 20_000, PRECISIONS, ("float16",)
    ),
    "cpu": Sizes(("resnet8:resnet8",), 2, 1, 200, ("float32", "bfloat16"), ()),
}


class TimeIsUp(BaseException):
    """The limit was reached; not an `Exception`, so that no library catches it."""


class Results:
    """Rows of the page's sections, written whenever one is added.

    Parameters
    ----------
    out : Path
        The page; the rows are beside it, as lines of JSON.
    title : str
    """

    def __init__(self, out: Path, title: str) -> None:
        self.out, self.title, self.started = out, title, time.monotonic()
        self.sections: dict[str, list[Row]] = {}
        self.lines = out.with_suffix(".jsonl")
        self.lines.unlink(missing_ok=True)

    def add(self, section: str, row: Row) -> None:
        """Add a row to a section, and write both files."""
        self.sections.setdefault(section, []).append(row)
        seconds = round(time.monotonic() - self.started, 1)
        print(f"{seconds:6.1f} s  {section}: {row}", file=sys.stderr, flush=True)
        with self.lines.open("a") as file:
            file.write(json.dumps({"seconds": seconds, "section": section, **row}) + "\n")
        parts = [part for name, rows in self.sections.items() for part in (f"## {name}", _table_of(rows))]
        write_text(self.out, make_page(self.title, *parts))


def _table_of(rows: list[Row]) -> str:
    columns = [*dict.fromkeys(name for row in rows for name in row)]
    return table(columns, [[row.get(name, "") for name in columns] for row in rows])


def main() -> None:
    """Measure what the limit allows, the checks first."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit-s", type=float, default=LIMIT_SECONDS, help="seconds after which it ends")
    chosen = parser.parse_args()
    keep_freed_memory()
    out, sizes = chosen.out or Path("gpu.md"), SIZES[chosen.device]
    results = Results(out, f"kdcache in {Compute.choose(chosen.device)}")
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, chosen.limit_s, AGAIN_SECONDS)
    done = True
    for section, measure in work(chosen.device, sizes):
        try:
            if not done:
                raise TimeIsUp
            for row in measure():
                results.add(section, row)
        except TimeIsUp:
            signal.setitimer(signal.ITIMER_REAL, 0)
            done = False
            results.add(section, {"not measured": f"the limit of {chosen.limit_s:.0f} s was reached"})
        except Exception as error:  # one failure is a result, and must not hide the others
            traceback.print_exc()
            results.add(section, {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    signal.setitimer(signal.ITIMER_REAL, 0)
    results.add("Time", {"seconds": round(time.monotonic() - results.started), "complete": done})


def _end(*_: object) -> None:
    raise TimeIsUp


def work(device: str, sizes: Sizes) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """List the sections of the page, and what measures each."""
    computes = [*available(device)]
    yield "Views, against the processor's", lambda: check_views(Compute.choose(device).device)
    yield "The teacher's logits, against float32 on the processor", lambda: check_teacher(computes)
    for compute in computes:
        if compute.precision in (Compute.choose(device).precision, *sizes.trained_in):
            yield "Small trainings", partial(check_trainings, compute)
    for pair in sizes.pairs:
        for compute in computes:
            if compute.precision in sizes.timed_in:
                yield "A step of CutMix-pick", partial(time_steps, pair, compute, sizes)
    yield "Evaluation", lambda: time_evaluation(computes, sizes)
    yield "The operations of one step, online", lambda: profile_step(sizes.pairs[0], Compute.choose(device))
    yield "Compiled", lambda: check_compilation(Compute.choose(device))


def available(device: str) -> Iterator[Compute]:
    """Find the precisions that a device has."""
    for precision in PRECISIONS:
        try:
            yield Compute.choose(device, precision)
        except UsageError as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
