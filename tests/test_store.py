"""The store: one contract wherever it lies, damage of every kind, formats, and several processes at once."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from kdcache.losses import kld
from kdcache.store.answers import CLEAN, AnswerStore, Replayed, table_bytes
from kdcache.store.finite import FiniteViews
from kdcache.store.formats import DENSE, Columns, Dense, TopK
from kdcache.store.place import Place
from kdcache.store.table import CHUNK_BYTES, LARGE_CHUNK_BYTES, MANY_CHUNKS, Table, chunk_rows, fill
from tests import answers

CLASSES = 100
ROWS = 25_000  # three chunks of float16


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket on the loopback address."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("obstore")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    boto3.client("s3").create_bucket(Bucket="answers")
    yield "s3://answers"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture(params=["folder", "memory", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "url":
        return Place(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")
    return Place(tmp_path / "store.zarr" if request.param == "folder" else None)


def table(place: Place, name: str = CLEAN, rows: int = ROWS) -> Table:
    return Table(place, name, rows, DENSE.layout(CLASSES))


def whole(place: Place, name: str = CLEAN) -> Table:
    """A table that is full."""
    one = table(place, name)
    list(fill([(one, rows_of)]))
    return one


def rows_of(span: range) -> Columns:
    """Rows that tell where they belong."""
    return {"logits": (torch.tensor(span)[:, None] % 2011 + torch.arange(CLASSES) / 128).half()}


def equal(one: Columns | None, other: Columns) -> bool:
    return one is not None and all(one[name].equal(other[name]) for name in other)


class TestContract:
    """What holds wherever the store lies."""

    def test_a_chunk_is_there_once_it_was_written_and_not_before(self, place: Place) -> None:
        first, later = table(place), table(place)
        assert [len(chunk) for chunk in first.chunks] == [8334, 8334, 8332]
        assert first.read(1) is None
        first.obtain(1, rows_of)
        assert later.committed().tolist() == [0, 8334, 0]
        assert equal(later.read(1), rows_of(first.chunks[1]))
        assert later.read(0) is later.read(2) is None

    def test_what_is_there_is_never_asked_again(self, place: Place) -> None:
        asked: list[range] = []

        def ask(span: range) -> Columns:
            asked.append(span)
            return rows_of(span)

        for _ in range(2):
            one = table(place)
            for chunk, span in enumerate(one.chunks):
                assert equal(one.obtain(chunk, ask), rows_of(span))
        assert asked == table(place).chunks
        assert [chunk for _, chunk, _ in fill([(table(place), ask)])] == [0, 1, 2]
        assert asked == table(place).chunks

    def test_keys_sizes_and_removal(self, place: Place) -> None:
        for name in ("replay/seed-1/epoch-0000/standard", "replay/seed-10/epoch-0000/standard"):
            whole(place, name)
        assert place.size("replay/seed-1") == place.size("replay/seed-10") > ROWS * CLASSES * 2
        place.delete_group("replay/seed-1")
        assert place.list_keys("replay/seed-1") == []
        assert len([key for key in place.list_keys("replay/seed-10") if "/c/" in key]) == 6
        place.delete("replay/nowhere")
        assert not place.has("replay/nowhere")


def test_a_whole_run_at_a_url(bucket: str, noise: Split, tmp_path: Path) -> None:
    where = f"{bucket}/{tmp_path.name}/store.zarr"
    views = answers.views(noise)
    first = answers.ask(answers.oracle(where, noise, views, "auto", 2), 2)
    again = answers.oracle(where, noise, views, "auto", 2)
    assert answers.ask(again, 2) == first
    assert again.count().asked == 0
    AnswerStore(where).drop([name.table for name in AnswerStore(where).replayed()])
    assert AnswerStore(where).tables() == []


def test_a_url_that_answers_nobody_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(UsageError, match="--store nothing://here"):
        Place("nothing://here")


DAMAGES = {
    "a bit": lambda content: content[:70] + bytes([content[70] ^ 4]) + content[71:],
    "truncated": lambda content: content[:-3],
    "emptied": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "deleted": None,
}
FILES = ["logits/c/1/0", "commits/c/1/0", "logits/zarr.json", "commits/zarr.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_noticed_asked_again_and_never_used(file: str, damage: str, tmp_path: Path) -> None:
    place = whole(Place(tmp_path / "store.zarr")).place
    path = tmp_path / "store.zarr" / CLEAN / file
    content, change = path.read_bytes(), DAMAGES[damage]
    if damage == "a bit" and len(content) < 80:
        change = lambda content: bytes([content[0] ^ 4]) + content[1:]  # noqa: E731
    path.unlink() if change is None else path.write_bytes(change(content))

    asked = []

    def ask(span: range) -> Columns:
        asked.append(span)
        return rows_of(span)

    later = table(place)
    found = [later.read(chunk) for chunk in range(3)]
    assert all(columns is None or equal(columns, rows_of(later.chunks[chunk])) for chunk, columns in enumerate(found))
    assert found[1] is None
    list(fill([(later, ask)]))
    assert asked == ([later.chunks[1]] if "/c/" in file else [])  # metadata are mended, and the data beside them good
    assert all(equal(table(place).read(chunk), rows_of(span)) for chunk, span in enumerate(later.chunks))


def test_a_chunk_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    one = whole(Place(tmp_path / "store.zarr"))
    data = tmp_path / "store.zarr" / CLEAN / "logits" / "c"
    shutil.copy(data / "0" / "0", data / "1" / "0")  # whole, with a checksum that is right
    assert table(one.place).read(1) is None
    assert table(one.place).read(0) is not None


def test_data_without_a_commit_are_not_there(tmp_path: Path) -> None:
    one = table(Place(tmp_path / "store.zarr"))
    one.obtain(0, rows_of)
    one._arrays["logits"][one.chunks[1].start : one.chunks[1].stop] = rows_of(one.chunks[1])["logits"].numpy()
    assert table(one.place).read(1) is None
    assert table(one.place).committed().tolist() == [8334, 0, 0]


def test_a_commit_follows_the_data_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    place = Place(tmp_path / "store.zarr")
    assert place.folder is not None
    one = table(place)
    one.obtain(0, rows_of)
    data, commit = (tmp_path / "store.zarr" / CLEAN / name / "c/0/0" for name in ("logits", "commits"))
    assert synced.index(str(data)) < synced.index(str(commit))
    assert synced.index(str(data.parent)) < synced.index(str(commit))
    new = {str(folder) for path in (data, commit) for folder in path.parents if folder.is_relative_to(place.folder)}
    assert new <= set(synced)  # a folder that was made has to last too
    assert str(place.folder.parent) in synced


@given(rows=st.integers(1, 2_000_000), row_bytes=st.integers(4, 8000))
@settings(max_examples=200, deadline=None)
def test_chunks_are_whole_equal_and_neither_too_large_nor_too_many(rows: int, row_bytes: int) -> None:
    size = chunk_rows(rows, row_bytes)
    chunks = -(-rows // size)
    assert 1 <= size <= rows
    assert size * row_bytes <= LARGE_CHUNK_BYTES + row_bytes
    if rows * row_bytes <= MANY_CHUNKS * CHUNK_BYTES:
        assert chunks <= MANY_CHUNKS
        assert size * row_bytes <= CHUNK_BYTES + row_bytes
    assert (chunks * size - rows) < chunks  # what the last chunk lacks is less than a row for each chunk


@pytest.mark.parametrize("format", [DENSE, Dense("float32"), TopK("float16", 5)])
@pytest.mark.parametrize(("samples", "classes"), [(6000, 10), (50_000, 100)])
def test_the_size_of_a_table_is_known_before(format: Dense | TopK, samples: int, classes: int, tmp_path: Path) -> None:
    one = Table(Place(tmp_path), "replay/seed-0/epoch-0000/standard", samples, format.layout(classes))
    list(fill([(one, lambda span: format.encode(torch.randn(len(span), classes)))]))
    assert one.place.size() == pytest.approx(table_bytes(samples, classes, format), rel=0.02)


LOGITS = npst.arrays(np.float32, (3, 12), elements=st.floats(-100, 100, width=32))


@given(logits=LOGITS)
@settings(max_examples=100, deadline=None)
def test_an_answer_that_went_through_its_format_goes_through_it_unchanged(logits: np.ndarray) -> None:
    once = DENSE.decode(DENSE.encode(torch.from_numpy(logits)), 12)
    assert DENSE.decode(DENSE.encode(once), 12).equal(once)
    assert (
        Dense("float32").decode(Dense("float32").encode(torch.from_numpy(logits)), 12).equal(torch.from_numpy(logits))
    )


@given(logits=LOGITS)
@settings(max_examples=100, deadline=None)
def test_of_the_largest_logits_each_is_exact_and_the_rest_weighs_what_it_did(logits: np.ndarray) -> None:
    given_ = torch.from_numpy(logits)
    found = TopK("float32", 4).decode(TopK("float32", 4).encode(given_), 12)
    top = given_.topk(4, dim=1)
    assert found.gather(1, top.indices).equal(top.values)
    shares = [(x / 4).softmax(1).scatter(1, top.indices, 0).sum(1) for x in (given_, found)]
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-3, atol=1e-5)
    assert (kld(given_, found, 4.0) >= -1e-5).all()


def test_as_many_as_all_logits_are_refused_before_anything_is_made(noise: Split, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--topk: allowed fewer than the 4 classes, given 4"):
        answers.store(tmp_path / "store.zarr", answers.teacher(), noise, TopK("float16", 4))
    assert list(tmp_path.iterdir()) == []


@given(keys=st.lists(st.lists(st.integers(0, 19), max_size=9), max_size=9))
@settings(max_examples=100, deadline=None)
def test_finite_views_are_a_dictionary_that_keeps_the_first_answer(keys: list[list[int]]) -> None:
    known: dict[int, float] = {}
    finite = FiniteViews(20, 20, {"logits": (2, np.dtype("float32"))})
    for number, some in enumerate(keys):
        finite.add(np.array(some, np.int64), {"logits": torch.full((len(some), 2), float(number))})
        for key in some:
            known.setdefault(key, float(number))
    there, columns = finite.find(np.arange(20))
    assert np.flatnonzero(there).tolist() == sorted(known)
    assert columns["logits"].tolist() == [[known[key]] * 2 for key in sorted(known)]


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 20_000), kind=st.sampled_from(["standard", "cutmix-2"]))
@settings(max_examples=50, deadline=None)
def test_the_name_of_a_table_can_be_read(seed: int, epoch: int, kind: str) -> None:
    name = Replayed(seed, epoch, kind)
    assert Replayed.parse(name.table) == name
    assert Replayed.parse(CLEAN) is None


def filled(tmp_path: Path, noise: Split) -> AnswerStore:
    oracle = answers.oracle(tmp_path / "store.zarr", noise, answers.views(noise), epochs=2)
    list(oracle.fill(2))
    list(oracle.fill_clean())
    assert oracle.store is not None
    return oracle.store


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
    from kdcache.store.place import Place
    with Place(sys.argv[1]).lock("clean/0") as mine:
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
    one = table(Place(tmp_path / "store.zarr"))
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
    from kdcache.store.place import Place
    one = table(Place(sys.argv[1]))
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
    one = table(Place(tmp_path / "store.zarr"))
    assert equal(one.obtain(0, lambda span: pytest.fail("asked twice")), rows_of(one.chunks[0]))
    assert process.wait(timeout=20) == 0


def test_every_name_of_a_folder_leads_to_the_same_lock(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store.zarr").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "store.zarr")
    monkeypatch.chdir(tmp_path / "store.zarr")
    for name in ("../link", ".", "../store.zarr"):
        with Place(name).lock("clean/0", wait=False) as mine:
            assert not mine, name


@pytest.mark.parametrize("name", ["clean", "standard", "replay", "c"])
def test_a_store_may_have_any_name(name: str, noise: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    oracle = answers.oracle(name, noise, answers.views(noise), epochs=1)
    list(oracle.fill(1))
    list(oracle.fill_clean())
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
    one = table(Place(tmp_path / "store.zarr"))
    order: list[range] = []

    def ask(span: range) -> Columns:
        order.append(span)
        if len(order) == 2:  # the others are done: the process that held the first chunk dies
            holder.kill()
        return rows_of(span)

    assert [chunk for _, chunk, _ in fill([(one, ask)])] == [1, 2, 0]
    assert order == [one.chunks[1], one.chunks[2], one.chunks[0]]
