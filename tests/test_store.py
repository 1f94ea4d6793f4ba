"""Stores as a whole: tables, refusals, and several processes at once."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from kdcache import choices
from kdcache.answers.encoding import EncodedAnswers
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, AnswerStore, ReplayTableName
from kdcache.answers.table import fill_missing
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from tests import answers
from tests.processes import kdcache, start_process
from tests.rows import equal, rows_of, table


def full_store(tmp_path: Path, noise: Split) -> AnswerStore:
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, answers.views(noise), epochs=2)
    list(cached_teacher.precompute(2))
    list(cached_teacher.precompute_clean())
    assert cached_teacher.store is not None
    return cached_teacher.store


def test_drop_keeps_other_tables_and_no_unfinished_files(noise: Split, tmp_path: Path) -> None:
    store = full_store(tmp_path, noise)
    litter = tmp_path / "store.zarr" / "clean" / "logits" / "c" / "0" / "0.4711.partial"
    litter.write_text("a killed writer left this")
    first_epoch = [name.path for name in store.replay_tables() if name.epoch == 0]
    store.drop([name.path for name in store.replay_tables() if name.epoch == 1])
    assert sorted(store.table_paths()) == sorted([CLEAN, *first_epoch])
    assert not (tmp_path / "store.zarr" / "replay" / "seed-0" / "epoch-0001").exists()
    assert not litter.exists()
    store.drop(first_epoch)
    assert not (tmp_path / "store.zarr" / "replay").exists()
    assert store.table_paths() == [CLEAN]
    assert store.table(CLEAN).read(0) is not None


@pytest.mark.parametrize("change", ["schema", "encoding", "fingerprint", "json"])
def test_damaged_attributes_are_an_error(change: str, noise: Split, tmp_path: Path) -> None:
    full_store(tmp_path, noise)
    path = tmp_path / "store.zarr" / "zarr.json"
    document = json.loads(path.read_text())
    if change == "json":
        path.write_text(path.read_text()[:-20])
    else:
        changes = {"schema": "another", "encoding": {"dtype": "float32"}, "fingerprint": {}}
        document["attributes"][change] = changes[change]
        path.write_text(json.dumps(document))
    with pytest.raises(KdcacheError, match=r"store\.zarr"):
        AnswerStore(tmp_path / "store.zarr")


def test_opening_a_missing_store_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a store that exists"):
        AnswerStore(tmp_path / "store.zarr")
    assert list(tmp_path.iterdir()) == []


def hold(store: Path, pipe: Connection) -> None:
    with StoreLocation(store).lock("clean/0") as mine:
        pipe.send(mine)
        pipe.recv()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[BaseProcess]:
    """Another process that holds the lock on the first chunk of clean views."""
    pipe, far_end = Pipe()
    process = start_process(hold, tmp_path / "store.zarr", far_end, daemon=True)
    assert pipe.recv() is True
    yield process
    process.kill()
    process.join()


def test_a_chunk_that_another_process_computes_is_left_to_it(holder: BaseProcess, noise: Split, tmp_path: Path) -> None:
    store = answers.store(tmp_path / "store.zarr", answers.teacher(), noise)
    one = table(StoreLocation(tmp_path / "store.zarr"))
    assert one.read_or_compute(0, rows_of, wait=False) is None
    assert one.read_or_compute(1, rows_of, wait=False) is not None
    assert one.read(0) is None
    with pytest.raises(UsageError, match="in use"):
        store.drop([CLEAN])
    holder.kill()
    holder.join()  # the kernel releases its lock
    assert equal(one.read_or_compute(0, rows_of), rows_of(one.chunks[0]))
    store.drop([CLEAN])


def write(store: Path, pipe: Connection) -> None:
    def compute_rows(span: range) -> EncodedAnswers:
        pipe.send("computing")
        pipe.recv()
        return rows_of(span)

    table(StoreLocation(store)).read_or_compute(0, compute_rows)


def test_a_chunk_that_another_process_wrote_meanwhile_is_not_computed_again(tmp_path: Path) -> None:
    pipe, far_end = Pipe()
    process = start_process(write, tmp_path / "store.zarr", far_end, daemon=True)
    assert pipe.recv() == "computing"
    threading.Timer(0.3, lambda: pipe.send("go")).start()
    one = table(StoreLocation(tmp_path / "store.zarr"))
    assert equal(one.read_or_compute(0, lambda span: pytest.fail("computed twice")), rows_of(one.chunks[0]))
    process.join(20)
    assert process.exitcode == 0


def test_every_path_to_a_folder_has_the_same_lock(
    holder: BaseProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    list(cached_teacher.precompute(1))
    list(cached_teacher.precompute_clean())
    kinds = ("cutmix-1", "cutmix-2", "standard")
    assert AnswerStore(name).table_paths() == [CLEAN, *(ReplayTableName(0, 0, kind).path for kind in kinds)]


def test_a_folder_that_is_not_a_store_is_left_alone(noise: Split, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "photo.jpg").write_bytes(b"private")
    (tmp_path / "file").write_text("private too")
    for name in ("album", "file"):
        with pytest.raises(UsageError, match="--store"):
            answers.store(tmp_path / name, answers.teacher(), noise)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["album", "photo.jpg", "file"]


def test_unfinished_files_of_another_process_are_ignored(noise: Split, tmp_path: Path) -> None:
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "zarr.4711.partial").write_text("{")
    assert answers.store(tmp_path / "store.zarr", answers.teacher(), noise).table_paths() == []


def open_stores(pipe: Connection) -> None:
    teacher = answers.teacher()
    pipe.send("ready")
    while store := pipe.recv():
        answers.store(store, teacher, blank())
        pipe.send("opened")


def blank() -> Split:
    return Split(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))


def test_several_processes_create_one_store_at_once(tmp_path: Path) -> None:
    pipes = [Pipe() for _ in range(3)]
    openers = [start_process(open_stores, far_end, daemon=True) for _, far_end in pipes]
    assert [pipe.recv() for pipe, _ in pipes] == ["ready"] * 3
    for number in range(25):
        for pipe, _ in pipes:
            pipe.send(tmp_path / str(number) / "store.zarr")
        assert [pipe.recv() for pipe, _ in pipes] == ["opened"] * 3
    for pipe, _ in pipes:
        pipe.send(None)
    for opener in openers:
        opener.join()


def test_tables_without_their_root_are_an_error(noise: Split, tmp_path: Path) -> None:
    full_store(tmp_path, noise)
    (tmp_path / "store.zarr" / "zarr.json").unlink()
    with pytest.raises(UsageError, match=r"a store that lost its zarr\.json"):
        answers.store(tmp_path / "store.zarr", answers.teacher(seed=5), noise)


def test_filling_waits_for_other_processes_last(holder: BaseProcess, tmp_path: Path) -> None:
    one = table(StoreLocation(tmp_path / "store.zarr"))
    order: list[range] = []

    def compute_rows(span: range) -> EncodedAnswers:
        order.append(span)
        if len(order) == 2:  # all others are done: the process that holds the lock dies
            holder.kill()
        return rows_of(span)

    assert [chunk for _, chunk, _ in fill_missing([(one, compute_rows)])] == [1, 2, 0]
    assert order == [one.chunks[1], one.chunks[2], one.chunks[0]]


def add_grid_mask() -> None:
    choices.MIXES["grid-mask"] = choices.MIXES["cutout"]


def test_an_augmentation_with_a_hyphen_can_be_stored_verified_and_pruned(
    pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    run = partial(kdcache, cwd=tmp_path, prepare=add_grid_mask)
    data, of = ("--dataset", f"folder:{pictures}", "--image-size", "32"), (str(teacher), "--store", "store.zarr")
    fill = ("--aug", "grid-mask", "--candidates", "2", "--epochs", "2")
    for words, parts in (
        (("fill", *data, "--teacher", *of, *fill), ["logits of 540 of 540 views are stored"]),
        (("verify", *of, "--all"), ["grid-mask-1, view seed 0", "max error 0, 0"]),
        (("prune", *of, "--kind", "grid-mask-2"), ["deleted 2"]),
        (("prune", *of, "--all"), ["deleted 4"]),
    ):
        done = run("cache", *words)
        assert done.returncode == 0, done.stderr
        assert [part for part in parts if part not in done.stdout] == []
