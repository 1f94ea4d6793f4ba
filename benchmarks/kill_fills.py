"""Kill fills of a store at random moments, damage files between them, and see that every store ends with the same bits.

Three kinds in turn: one fill, two at a time, and one with a file truncated, zeroed, altered or deleted after each kill.
A store that is complete is compared with that of a fill that was never killed, and the next one is begun::

    python benchmarks/kill_fills.py --kills 120 > docs/results/kill_fills.md
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kdcache.stages import train_teacher
from kills import SAMPLES, arguments, files, pictures, print_table, unfinished

from kdcache.config import TeacherConfig

EPOCHS = 120
EXPECTED_FILES = 2 * 3 * EPOCHS


def records(store: Path) -> int:
    """Count the commit records of a store."""
    return sum(1 for _ in store.glob("replay/*/*/*/commits/c/*/0"))


def committed(store: Path) -> dict[str, bytes]:
    """Read the chunks that have a commit record, and the records."""
    found = files(store)
    records = {name for name in found if "/commits/" in name}
    chunks = {name.replace("/commits/", "/logits/") for name in records}
    return {name: found[name] for name in sorted(records | (chunks & found.keys()))}


def flip(path: Path) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit flipped": flip,
    "deleted": lambda path: path.unlink(),
}


def main() -> None:
    """Kill, and print the table."""
    kills, moments = arguments(str(__doc__))
    with tempfile.TemporaryDirectory() as name:
        rows = [trial(Path(name) / kind, kind, kills // 3, moments) for kind in ("one", "two", "damaged")]
    text = f"""# Fills that were killed

Each fill asks a ResNet8 about {3 * EPOCHS * SAMPLES} views of {SAMPLES} small images, {3 * EPOCHS} tables of one chunk,
and gets SIGKILL after a random part of that work. "In a write": the store then held data without a commit record, an
unfinished file, or a table without a chunk, which had not been there before. "Lost" and "wrong" count chunks that were
committed before a kill and are gone or other afterwards, and chunks of a finished store that differ from those of a
fill that was never killed.
"""
    print_table(text, ("fills", "kills", "in a write", "files damaged", "stores finished", "lost", "wrong"), rows)


def trial(root: Path, kind: str, kills: int, moments: random.Random) -> tuple[object, ...]:
    """Kill fills of one kind so many times: the row of the table."""
    data = pictures(root / "data")
    settings = {"dataset": f"folder:{data}", "image_size": 32, "model": "resnet8", "epochs": 1, "device": "cpu"}
    teacher = train_teacher(TeacherConfig.load(**settings, out=root / "teacher")).path

    def start(store: Path) -> "subprocess.Popen[bytes]":
        words = f"--dataset folder:{data} --image-size 32 --teacher {teacher} --aug cutmix-pick --epochs {EPOCHS}"
        command = [sys.executable, "-m", "kdcache", "cache", "fill", *words.split(), "--store", str(store)]
        return subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole, store = root / "whole.zarr", root / "store.zarr"
    began = time.perf_counter()
    first = start(whole)
    seconds = time_of(first, whole, began)
    expected = files(whole)
    assert len(expected) == EXPECTED_FILES, len(expected)

    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        before, begun = committed(store), unfinished(store)
        fills = [start(store) for _ in range(2 if kind == "two" else 1)]
        began_with = records(store)
        while records(store) == began_with and any(fill.poll() is None for fill in fills):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, seconds / 4))
        running = [fill for fill in fills if fill.poll() is None]
        for fill in running:
            os.kill(fill.pid, signal.SIGKILL)
        for fill in fills:
            fill.wait()
        counts["kills"] += len(running)
        after = committed(store)
        counts["lost"] += sum(after.get(name) != content for name, content in before.items() if name not in DAMAGED)
        DAMAGED.clear()
        counts["in a write"] += bool(running and unfinished(store) - begun)
        if len(after) == EXPECTED_FILES and not running:
            counts["stores"] += 1
            counts["wrong"] += sum(files(store)[name] != content for name, content in expected.items())
            shutil.rmtree(store)
        elif kind == "damaged" and after:
            victim = moments.choice(sorted(after))
            moments.choice(sorted(DAMAGE.items()))[1](store / victim)
            DAMAGED.update({victim, victim.replace("/commits/", "/logits/"), victim.replace("/logits/", "/commits/")})
            counts["damaged"] += 1
    last = start(store)
    assert last.wait() == 0
    counts["stores"] += 1
    counts["wrong"] += sum(files(store).get(name) != content for name, content in expected.items())
    words = {"one": "one at a time", "two": "two at a time", "damaged": "one, and a damaged file after each kill"}
    figures = (counts[name] for name in ("kills", "in a write", "damaged", "stores", "lost", "wrong"))
    return (words[kind], *figures)


DAMAGED: set[str] = set()
"""Files that were damaged on purpose, and may differ until they are asked again."""


def time_of(fill: "subprocess.Popen[bytes]", store: Path, began: float) -> float:
    """Wait for a fill, and measure how long it worked once it had begun."""
    while not records(store) and fill.poll() is None:
        time.sleep(0.01)
        began = time.perf_counter()
    assert fill.wait() == 0
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
