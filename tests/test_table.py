"""Tables of answers: one contract wherever they lie, damage of every kind, and what a format keeps."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kdcache.answers.codec import DENSE, Columns, Dense, TopK
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, AnswerStore, Replayed, table_bytes
from kdcache.answers.table import CHUNK_BYTES, LARGE_CHUNK_BYTES, MANY_CHUNKS, Table, chunk_rows, fill
from kdcache.answers.view_index import CropFlipIndex
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.losses import kld
from tests import answers
from tests.rows import CLASSES, ROWS, equal, rows_of, table, whole


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
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    if request.param == "url":
        return StoreLocation(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")
    return StoreLocation(tmp_path / "store.zarr" if request.param == "folder" else None)


class TestContract:
    """What holds wherever the store lies."""

    def test_a_chunk_is_there_once_it_was_written_and_not_before(self, place: StoreLocation) -> None:
        first, later = table(place), table(place)
        assert [len(chunk) for chunk in first.chunks] == [8334, 8334, 8332]
        assert first.read(1) is None
        first.obtain(1, rows_of)
        assert later.committed().tolist() == [0, 8334, 0]
        assert equal(later.read(1), rows_of(first.chunks[1]))
        assert later.read(0) is later.read(2) is None

    def test_what_is_there_is_never_asked_again(self, place: StoreLocation) -> None:
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

    def test_keys_sizes_and_removal(self, place: StoreLocation) -> None:
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
    first = answers.ask(answers.cached_teacher(where, noise, views, "auto", 2), 2)
    again = answers.cached_teacher(where, noise, views, "auto", 2)
    assert answers.ask(again, 2) == first
    assert again.count().asked == 0
    AnswerStore(where).drop([name.table for name in AnswerStore(where).replayed()])
    assert AnswerStore(where).tables() == []


def test_a_url_that_answers_nobody_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(UsageError, match="--store nothing://here"):
        StoreLocation("nothing://here")


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
    place = whole(StoreLocation(tmp_path / "store.zarr")).place
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
    one = whole(StoreLocation(tmp_path / "store.zarr"))
    data = tmp_path / "store.zarr" / CLEAN / "logits" / "c"
    shutil.copy(data / "0" / "0", data / "1" / "0")  # whole, with a checksum that is right
    assert table(one.place).read(1) is None
    assert table(one.place).read(0) is not None


def test_data_without_a_commit_are_not_there(tmp_path: Path) -> None:
    one = table(StoreLocation(tmp_path / "store.zarr"))
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
    place = StoreLocation(tmp_path / "store.zarr")
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
    one = Table(StoreLocation(tmp_path), "replay/seed-0/epoch-0000/standard", samples, format.layout(classes))
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
    with pytest.raises(UsageError, match="--topk: expected fewer than the 4 classes, got 4"):
        answers.store(tmp_path / "store.zarr", answers.teacher(), noise, TopK("float16", 4))
    assert list(tmp_path.iterdir()) == []


@given(keys=st.lists(st.lists(st.integers(0, 19), max_size=9), max_size=9))
@settings(max_examples=100, deadline=None)
def test_finite_views_are_a_dictionary_that_keeps_the_first_answer(keys: list[list[int]]) -> None:
    known: dict[int, float] = {}
    finite = CropFlipIndex(20, 20, {"logits": (2, np.dtype("float32"))})
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
