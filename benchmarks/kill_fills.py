"""Kill fills of a store at random moments, damage files between them, and see that every store ends with the same bits.

Three kinds in turn: one fill, two at a time, and one with a file truncated, zeroed, altered or deleted after each kill.
A store that is complete is compared with that of a fill that was never killed, and the next one is begun::

    python benchmarks/kill_fills.py --kills 120 > docs/results/kill_fills.md
"""

import argparse
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

import numpy as np
from common import footer
from kdcache.stages import train_teacher
from PIL import Image

from kdcache.config import TeacherConfig

EPOCHS, SAMPLES = 120, 90
EXPECTED_FILES = 2 * 3 * EPOCHS


def pictures(root: Path) -> Path:
    """Make a small folder dataset."""
    noise = np.random.Generator(np.random.Philox(5))
    for split, count in (("train", SAMPLES // 3), ("val", 5)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def files(store: Path) -> dict[str, bytes]:
    """Read every chunk and commit record of a store."""
    found = [path for path in store.rglob("*") if "/c/" in str(path) and path.suffix != ".partial" and path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        rows = [trial(Path(name) / kind, kind, chosen.kills // 3, moments) for kind in ("one", "two", "damaged")]
    print(f"""# Fills that were killed

Each fill asks a ResNet8 about {3 * EPOCHS * SAMPLES} views of {SAMPLES} small images, {3 * EPOCHS} tables of one chunk,
and gets SIGKILL after a random part of that work. "In a write": the store then held data without a commit record, an
unfinished file, or arrays without a chunk. "Lost" and "wrong" count chunks that were committed before a kill and are
gone or other afterwards, and chunks of a finished store that differ from those of a fill that was never killed.

| fills | kills | in a write | files damaged | stores finished | lost | wrong |
| --- | --- | --- | --- | --- | --- | --- |""")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(footer())


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
        before = committed(store)
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
        counts["in a write"] += len(running) and in_a_write(store)
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


def in_a_write(store: Path) -> bool:
    """Tell whether a killed writer left something unfinished behind, and clear away its temporary files."""
    litter = list(store.rglob("*.partial"))
    for path in litter:
        path.unlink()
    found = files(store)
    uncommitted = any(name.replace("/logits/", "/commits/") not in found for name in found if "/logits/" in name)
    tables = [path.parent for path in store.rglob("commits") if path.is_dir()]
    begun = any(not (table / "commits" / "c").exists() for table in tables)
    groups = [path for path in store.rglob("epoch-*/*") if path.is_dir() and path.parent.name.startswith("epoch-")]
    return bool(litter) or uncommitted or begun or any(not (group / "commits").exists() for group in groups)


def time_of(fill: "subprocess.Popen[bytes]", store: Path, began: float) -> float:
    """Wait for a fill, and measure how long it worked once it had begun."""
    while not records(store) and fill.poll() is None:
        time.sleep(0.01)
        began = time.perf_counter()
    assert fill.wait() == 0
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
