"""Alter files at random, and check that kdcache rejects each one or reads it as what it has become.

`benchmarks/fuzz.py` does this many times, `tests/test_fuzz.py` a few. A file depends on nothing but the seed, the kind
and the number of the attempt, except for torch's old format, which holds memory addresses.
"""

import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from kdcache.errors import KdcacheError
from tests.altered_files import Configs, FileKind, Images, PackedDatasets, Stores, Verdict
from tests.altered_networks import Checkpoints, PublishedCheckpoints
from tests.altered_runs import ResumedRuns, RunFolders
from tests.processes import start_process

TIMEOUT_SECONDS = 30.0
SETUP_SECONDS = 120.0
MEMORY_BYTES = 512 * 2**20
"""Reading one altered file may raise the peak memory of the process by this much."""

KINDS: dict[str, type[FileKind]] = {
    "config": Configs,
    "run folder": RunFolders,
    "resumed run": ResumedRuns,
    "checkpoint": Checkpoints,
    "published": PublishedCheckpoints,
    "store": Stores,
    "packed": PackedDatasets,
    "image": Images,
}

PASSED = ("rejected", "unchanged", "named", "different")
FAILED = ("traceback", "crash", "hang", "memory", "wrong")


def fuzz(kind: str, folder: Path, seed: int, numbers: range) -> dict[int, Verdict]:
    """Alter and read files of one kind, in a process that may hang or crash: the verdict on each, by its number."""
    verdicts: dict[int, Verdict] = {}
    while remaining := range(numbers.start + len(verdicts), numbers.stop):
        ours, theirs = multiprocessing.Pipe()
        worker = start_process(_try_altered, kind, folder, seed, remaining, theirs, daemon=True)
        theirs.close()
        try:
            assert ours.poll(SETUP_SECONDS), f"could not make the original files of kind {kind}"
            assert ours.recv() == "ready"
            for number in remaining:
                if not ours.poll(TIMEOUT_SECONDS):
                    verdicts[number] = Verdict("hang")
                    break
                verdicts[number] = ours.recv()
        except EOFError:
            verdicts[numbers.start + len(verdicts)] = Verdict("crash")
        finally:
            worker.kill()
            worker.join()
    return verdicts


def _try_altered(kind: str, folder: Path, seed: int, numbers: range, pipe: Connection) -> None:
    logging.disable()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, warnings of libraries
    files = KINDS[kind](Path(tempfile.mkdtemp(dir=folder)))
    empty = Path(tempfile.mkdtemp(dir=folder))
    os.chdir(empty)
    pipe.send("ready")
    for number in numbers:
        before = _peak_bytes()
        verdict = _verdict(files, Random(f"{seed} {kind} {number}"))
        if _peak_bytes() - before > MEMORY_BYTES:
            verdict = Verdict("memory", verdict.word)
        for path in empty.iterdir():
            verdict = Verdict("wrong", f"code in the file was run, or {path.name} was written")
            path.unlink()
        pipe.send(verdict)


def _verdict(files: FileKind, rng: Random) -> Verdict:
    try:
        return files.try_altered(rng)
    except KdcacheError as error:
        lines = str(error).split("\n")
        clear = all(line.isprintable() and line for line in lines)
        return Verdict("rejected") if clear else Verdict("wrong", f"the message is not printable: {lines}")
    except BaseException:
        return Verdict("traceback", traceback.format_exc())


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
