"""Whole stores: what is in them, what is refused, and several processes at once."""

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdcache.answers.codec import Columns
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, AnswerStore, Replayed
from kdcache.answers.table import fill
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from tests import answers
from tests.rows import equal, rows_of, table


def filled(tmp_path: Path, noise: Split) -> AnswerStore:
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, answers.views(noise), epochs=2)
    list(cached_teacher.fill(2))
    list(cached_teacher.precompute_clean())
    assert cached_teacher.store is not None
    return cached_teacher.store


def test_dropping_leaves_the_others_and_nothing_else(noise: Split, tmp_path: Path) -> None:
    store = filled(tmp_path, noise)
    litter = tmp_path / "store.zarr" / "clean" / "logits" / "c" / "0" / "0.4711.partial"
    litter.write_text("a writer was killed here")
    first_epoch = [name.table for name in store.replayed() if name.epoch == 0]
    store.drop([name.table for name in store.replayed() if name.epoch == 1])
    assert sorted(store.tables()) == sorted([CLEAN, *first_epoch])
    assert not (tmp_path / "store.zarr" / "replay" / "seed-0" / "epoch-0001").exists()
    assert not litter.exists()
    store.drop(first_epoch)
    assert not (tmp_path / "store.zarr" / "replay").exists()
    assert store.tables() == [CLEAN]
    assert store.table(CLEAN).read(0) is not None


@pytest.mark.parametrize("change", ["schema", "format", "fingerprint", "json"])
def test_a_root_that_is_damaged_is_one_clear_error(change: str, noise: Split, tmp_path: Path) -> None:
    filled(tmp_path, noise)
    path = tmp_path / "store.zarr" / "zarr.json"
    document = json.loads(path.read_text())
    if change == "json":
        path.write_text(path.read_text()[:-20])
    else:
        changes = {"schema": "another", "format": {"dtype": "float32"}, "fingerprint": {}}
        document["attributes"][change] = changes[change]
        path.write_text(json.dumps(document))
    with pytest.raises(KdcacheError, match=r"store\.zarr"):
        AnswerStore(tmp_path / "store.zarr")


def test_a_store_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a store that exists"):
        AnswerStore(tmp_path / "store.zarr")
    assert list(tmp_path.iterdir()) == []


HOLDER = """
    import sys, time
    from kdcache.answers.location import StoreLocation
    with StoreLocation(sys.argv[1]).lock("clean/0") as mine:
        print("held" if mine else "not held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the first chunk of the clean answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "store.zarr")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_chunk_that_another_process_is_at_is_left_to_it(
    holder: subprocess.Popen[str], noise: Split, tmp_path: Path
) -> None:
    store = answers.store(tmp_path / "store.zarr", answers.teacher(), noise)
    one = table(StoreLocation(tmp_path / "store.zarr"))
    assert one.obtain(0, rows_of, wait=False) is None
    assert one.obtain(1, rows_of, wait=False) is not None
    assert one.read(0) is None
    with pytest.raises(UsageError, match="in use"):
        store.drop([CLEAN])
    holder.kill()
    holder.wait()  # the kernel takes the lock from the dead
    assert equal(one.obtain(0, rows_of), rows_of(one.chunks[0]))
    store.drop([CLEAN])


WRITER = """
    import sys
    from pathlib import Path
    from tests.test_store import rows_of, table
    from kdcache.answers.location import StoreLocation
    one = table(StoreLocation(sys.argv[1]))
    def ask(span):
        print("asking", flush=True)
        sys.stdin.readline()
        return rows_of(span)
    one.obtain(0, ask)
"""


def test_what_another_process_wrote_while_we_waited_is_not_asked_again(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "store.zarr")],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "asking\n"
    threading.Timer(0.3, lambda: process.communicate("go\n")).start()
    one = table(StoreLocation(tmp_path / "store.zarr"))
    assert equal(one.obtain(0, lambda span: pytest.fail("asked twice")), rows_of(one.chunks[0]))
    assert process.wait(timeout=20) == 0


def test_every_name_of_a_folder_leads_to_the_same_lock(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store.zarr").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "store.zarr")
    monkeypatch.chdir(tmp_path / "store.zarr")
    for name in ("../link", ".", "../store.zarr"):
        with StoreLocation(name).lock("clean/0", wait=False) as mine:
            assert not mine, name


@pytest.mark.parametrize("name", ["clean", "standard", "replay", "c"])
def test_a_store_may_have_any_name(name: str, noise: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cached_teacher = answers.cached_teacher(name, noise, answers.views(noise), epochs=1)
    list(cached_teacher.fill(1))
    list(cached_teacher.precompute_clean())
    kinds = ("cutmix-1", "cutmix-2", "standard")
    assert AnswerStore(name).tables() == [CLEAN, *(Replayed(0, 0, kind).table for kind in kinds)]


def test_a_folder_that_is_no_store_is_left_alone(noise: Split, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "photo.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_text("dear too")
    for name in ("album", "file"):
        with pytest.raises(UsageError, match="store of answers"):
            answers.store(tmp_path / name, answers.teacher(), noise)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["album", "photo.jpg", "file"]


def test_a_root_that_another_process_is_just_writing_is_not_taken_for_other_files(noise: Split, tmp_path: Path) -> None:
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "zarr.4711.partial").write_text("{")
    assert answers.store(tmp_path / "store.zarr", answers.teacher(), noise).tables() == []


OPENER = """
    import sys
    from tests import answers
    from tests.test_store import blank
    teacher = answers.teacher()
    print("ready", flush=True)
    for line in sys.stdin:
        answers.store(line.strip(), teacher, blank())
        print("opened", flush=True)
"""


def blank() -> Split:
    return Split(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))


def test_several_processes_make_one_new_store_at_the_same_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(OPENER)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[1]}
    openers = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    assert [opener.stdout.readline() for opener in openers] == ["ready\n"] * 3
    for number in range(25):
        for opener in openers:
            opener.stdin.write(f"{tmp_path / str(number) / 'store.zarr'}\n")
            opener.stdin.flush()
        assert [opener.stdout.readline() for opener in openers] == ["opened\n"] * 3
    for opener in openers:
        opener.communicate()


def test_tables_whose_root_is_gone_are_not_taken_for_another_teachers(noise: Split, tmp_path: Path) -> None:
    filled(tmp_path, noise)
    (tmp_path / "store.zarr" / "zarr.json").unlink()
    with pytest.raises(UsageError, match=r"a store whose zarr\.json is gone"):
        answers.store(tmp_path / "store.zarr", answers.teacher(seed=5), noise)


def test_filling_takes_what_others_leave_and_waits_for_the_rest(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    one = table(StoreLocation(tmp_path / "store.zarr"))
    order: list[range] = []

    def ask(span: range) -> Columns:
        order.append(span)
        if len(order) == 2:  # the others are done: the process that held the first chunk dies
            holder.kill()
        return rows_of(span)

    assert [chunk for _, chunk, _ in fill([(one, ask)])] == [1, 2, 0]
    assert order == [one.chunks[1], one.chunks[2], one.chunks[0]]
