"""Feed kdcache files that were altered at random, and see that each is refused in a line or read for what it is.

Valid files are made and then altered: bytes, the JSON or TOML in them, what they hold, or the files around them. Each
input follows from seed, kind and number, but for torch's old layout, whose files hold memory addresses;
``--only store:17`` repeats one. Exits with 1 where anything went wrong::

    python benchmarks/fuzz.py --inputs 2000 > docs/results/fuzz.md
"""

import argparse
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from altered import Configs, Kind, Outcome, Packed, Pictures, Runs, Stores
from altered_networks import Checkpoints, Published

PATIENCE = 30.0
"""Seconds after which an input counts as one at which kdcache hangs."""

MEMORY = 512 * 2**20
"""Bytes by which an input may raise the most memory that was taken so far."""

FINE = ("refused", "as the original", "as another")
BAD = ("traceback", "crash", "hang", "memory", "wrong")

KINDS: dict[str, type[Kind]] = {
    "config": Configs,
    "run folder": Runs,
    "checkpoint": Checkpoints,
    "published": Published,
    "store": Stores,
    "packed": Packed,
    "picture": Pictures,
}


def work(kind: str, folder: Path, seed: int, numbers: range, pipe: Connection) -> None:
    """Try inputs one after the other, in a process that may hang or die, and send what came of each."""
    from kdcache.errors import KdcacheError

    logging.disable()
    os.chdir(folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, what libraries grumble at
    maker = KINDS[kind](Path(tempfile.mkdtemp(dir=folder)))
    pipe.send(None)
    for number in numbers:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = maker.try_one(Random(f"{seed} {kind} {number}"))
        except KdcacheError as error:
            lines = str(error).split("\n")
            clear = all(line.isprintable() and line for line in lines)
            outcome = Outcome("refused") if clear else Outcome("wrong", f"unclear message {lines}")
        except BaseException:
            outcome = Outcome("traceback", traceback.format_exc())
        if 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > MEMORY:
            outcome = Outcome("memory", outcome.word)
        if (folder / "ran").exists():
            outcome = Outcome("wrong", "code of a file was run")
            (folder / "ran").unlink()
        pipe.send((number, outcome))


def run_kind(kind: str, folder: Path, seed: int, numbers: range) -> dict[int, Outcome]:
    """Try inputs of a kind."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # with what `main` imported
    found: dict[int, Outcome] = {}
    while left := range(numbers.start + len(found), numbers.stop):
        mine, its = context.Pipe()
        worker = context.Process(target=work, args=(kind, folder, seed, left, its), daemon=True)
        worker.start()
        its.close()
        try:
            ready = mine.poll(120) and mine.recv() is None
            assert ready, f"{kind} cannot be made"
            while left:
                if not mine.poll(PATIENCE):
                    found[left.start] = Outcome("hang")
                    break
                number, found[left.start] = mine.recv()
                left = range(number + 1, numbers.stop)
        except EOFError:
            found[left.start] = Outcome("crash")
        finally:
            worker.kill()
            worker.join()
    return found


def main() -> int:
    """Try all kinds, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND[:NUMBER]", help="try one kind, or one of its inputs, alone")
    chosen = parser.parse_args()
    for module in ("torch", "h5py", "kdcache.setup", "kdcache.datasets.pictures", "kdcache.datasets.packed"):
        import_module(module)
    only, _, number = (chosen.only or "").partition(":")
    numbers = range(int(number), int(number) + 1) if number else range(chosen.inputs)
    kinds = [only] if only else list(KINDS)
    started, rows, bad = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory() as name:
        for kind in kinds:
            outcomes = run_kind(kind, Path(name) / kind.replace(" ", "-"), chosen.seed, numbers)
            counts = Counter(outcome.word for outcome in outcomes.values())
            rows.append([kind, len(outcomes), *(counts[word] for word in (*FINE, *BAD))])
            for place, outcome in outcomes.items():
                if outcome.word in BAD:
                    bad += 1
                    print(f"{kind}:{place} with seed {chosen.seed}: {outcome.word} {outcome.detail}", file=sys.stderr)
    if not number:
        print_page(rows, time.perf_counter() - started)
    return 1 if bad else 0


def print_page(rows: list[list[object]], seconds: float) -> None:
    """Print the page of results."""
    from common import footer

    total = sum(int(str(row[1])) for row in rows)
    print(f"""# Files that were altered

{total} inputs in {seconds:.0f} s: valid files of each kind, of which bytes, the JSON or TOML in them, what they hold,
or the files around them were altered at random. Every input is tried in a process that may die without the others.

- *refused*: an error of kdcache's own, each line printable; of a store also that a chunk was found missing or damaged,
  was not used, and was made again
- *as another*: read as the other valid thing that it now is, where the format has no checksum or the alteration came
  with a right one: a config with another value; images or weights with another fingerprint, which a store refuses
- *memory*: more than {MEMORY // 2**20} MB taken for an input; *hang*: more than {PATIENCE:.0f} s
- *wrong*: read as whole where it is not, code of a file run, or something outside a store written

| kind | inputs | {" | ".join((*FINE, *BAD))} |
| --- |{" ---: |" * (1 + len(FINE) + len(BAD))}""")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(footer())


if __name__ == "__main__":
    sys.exit(main())
