"""Tables: the same behavior in a folder, in memory and at a URL; damage; codecs; the index; names of tables."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kdcache.answers.encoding import DEFAULT_ENCODING, Dense, EncodedAnswers, TopK
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, AnswerStore, ReplayTableName, table_bytes
from kdcache.answers.table import CHUNK_BYTES, LARGE_CHUNK_BYTES, MAX_SMALL_CHUNKS, Table, chunk_rows, fill_missing
from kdcache.answers.view_index import CropFlipLookup
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.losses import kl_divergence
from kdcache.views.plan import STANDARD, format_kind, parse_kind
from tests import answers
from tests.alterations import DAMAGES, damage_file
from tests.rows import CLASSES, ROWS, equal, full_table, rows_of, table


@pytest.fixture(params=["folder", "memory", "url"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    if request.param == "url":
        return StoreLocation(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")
    return StoreLocation(tmp_path / "store.zarr" if request.param == "folder" else None)


class TestContract:
    """The same for a store in a folder, in memory and at a URL."""

    def test_a_chunk_can_be_read_once_it_is_committed(self, location: StoreLocation) -> None:
        first, later = table(location), table(location)
        assert [len(chunk) for chunk in first.chunks] == [8334, 8334, 8332]
        assert first.read(1) is None
        first.read_or_compute(1, rows_of)
        assert later.committed().tolist() == [0, 8334, 0]
        assert equal(later.read(1), rows_of(first.chunks[1]))
        assert later.read(0) is later.read(2) is None

    def test_committed_chunks_are_not_computed_again(self, location: StoreLocation) -> None:
        computed: list[range] = []

        def compute_rows(span: range) -> EncodedAnswers:
            computed.append(span)
            return rows_of(span)

        for _ in range(2):
            one = table(location)
            for chunk, span in enumerate(one.chunks):
                assert equal(one.read_or_compute(chunk, compute_rows), rows_of(span))
        assert computed == table(location).chunks
        assert [chunk for _, chunk, _ in fill_missing([(table(location), compute_rows)])] == [0, 1, 2]
        assert computed == table(location).chunks

    def test_keys_sizes_and_deletion(self, location: StoreLocation) -> None:
        for name in ("replay/seed-1/epoch-0000/standard", "replay/seed-10/epoch-0000/standard"):
            full_table(location, name)
        assert location.size("replay/seed-1") == location.size("replay/seed-10") > ROWS * CLASSES * 2
        location.delete_group("replay/seed-1")
        assert location.list_keys("replay/seed-1") == []
        assert len([key for key in location.list_keys("replay/seed-10") if "/c/" in key]) == 6
        location.delete("replay/nowhere")
        assert not location.has("replay/nowhere")

    def test_a_table_may_have_the_options_of_an_augmentation_in_its_name(self, location: StoreLocation) -> None:
        kinds = ("cutmix-1", "cutmix,alpha=0.2,probability=0.5-1", "cutmix,alpha=0.2-1")
        paths = [ReplayTableName(1, 0, kind).path for kind in kinds]
        for path in paths[:2]:
            full_table(location, path)
        folders = {key.rpartition("/c/")[0].rpartition("/")[0] for key in location.list_keys("replay") if "/c/" in key}
        assert folders == set(paths[:2])
        assert not location.has(paths[2])
        location.delete_group(paths[1])
        assert location.list_keys(paths[0])
        assert not location.list_keys(paths[1])


def test_a_store_at_a_url(bucket: str, noise: Split, tmp_path: Path) -> None:
    where = f"{bucket}/{tmp_path.name}/store.zarr"
    views = answers.views(noise)
    first = answers.all_logits(answers.cached_teacher(where, noise, views, "auto", 2), 2)
    again = answers.cached_teacher(where, noise, views, "auto", 2)
    assert answers.all_logits(again, 2) == first
    assert again.pop_counts().forwards == 0
    AnswerStore(where).drop([name.path for name in AnswerStore(where).replay_tables()])
    assert AnswerStore(where).table_paths() == []


def test_an_unsupported_url_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(UsageError, match="--store nothing://here"):
        StoreLocation("nothing://here")


FILES = ["logits/c/1/0", "commits/c/1/0", "logits/zarr.json", "commits/zarr.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_detected_and_repaired(file: str, damage: str, tmp_path: Path) -> None:
    location = full_table(StoreLocation(tmp_path / "store.zarr")).location
    path = tmp_path / "store.zarr" / CLEAN / file
    damage_file(path, damage)

    computed = []

    def compute_rows(span: range) -> EncodedAnswers:
        computed.append(span)
        return rows_of(span)

    later = table(location)
    found = [later.read(chunk) for chunk in range(3)]
    assert all(columns is None or equal(columns, rows_of(later.chunks[chunk])) for chunk, columns in enumerate(found))
    assert found[1] is None
    list(fill_missing([(later, compute_rows)]))
    # Metadata are repaired; the data beside them are intact.
    assert computed == ([later.chunks[1]] if "/c/" in file else [])
    assert all(equal(table(location).read(chunk), rows_of(span)) for chunk, span in enumerate(later.chunks))


def test_a_chunk_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    one = full_table(StoreLocation(tmp_path / "store.zarr"))
    data = tmp_path / "store.zarr" / CLEAN / "logits" / "c"
    shutil.copy(data / "0" / "0", data / "1" / "0")  # whole, with a checksum that is right
    assert table(one.location).read(1) is None
    assert table(one.location).read(0) is not None


def test_data_without_a_commit_record_are_missing(tmp_path: Path) -> None:
    one = table(StoreLocation(tmp_path / "store.zarr"))
    one.read_or_compute(0, rows_of)
    one._arrays["logits"][one.chunks[1].start : one.chunks[1].stop] = rows_of(one.chunks[1])["logits"].numpy()
    assert table(one.location).read(1) is None
    assert table(one.location).committed().tolist() == [8334, 0, 0]


def test_a_chunk_that_is_gone_is_not_counted(tmp_path: Path) -> None:
    one = full_table(StoreLocation(tmp_path / "store.zarr"))
    (tmp_path / "store.zarr" / one.name / "logits" / "c" / "1" / "0").unlink()
    later = table(StoreLocation(tmp_path / "store.zarr"))
    assert later.committed().tolist() == [8334, 0, 8332]
    assert later.damaged == {1}


def test_the_commit_record_is_synced_after_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    location = StoreLocation(tmp_path / "store.zarr")
    assert location.folder is not None
    one = table(location)
    one.read_or_compute(0, rows_of)
    data, commit = (tmp_path / "store.zarr" / CLEAN / name / "c/0/0" for name in ("logits", "commits"))
    assert synced.index(str(data)) < synced.index(str(commit))
    assert synced.index(str(data.parent)) < synced.index(str(commit))
    new = {str(folder) for path in (data, commit) for folder in path.parents if folder.is_relative_to(location.folder)}
    assert new <= set(synced)  # a folder that was made has to last too
    assert str(location.folder.parent) in synced


@given(rows=st.integers(1, 2_000_000), row_bytes=st.integers(4, 8000))
@settings(max_examples=200)
def test_chunks_are_equal_and_neither_too_large_nor_too_many(rows: int, row_bytes: int) -> None:
    size = chunk_rows(rows, row_bytes)
    chunks = -(-rows // size)
    assert 1 <= size <= rows
    assert size * row_bytes <= LARGE_CHUNK_BYTES + row_bytes
    if rows * row_bytes <= MAX_SMALL_CHUNKS * CHUNK_BYTES:
        assert chunks <= MAX_SMALL_CHUNKS
        assert size * row_bytes <= CHUNK_BYTES + row_bytes
    assert (chunks * size - rows) < chunks  # what the last chunk lacks is less than a row for each chunk


@pytest.mark.parametrize("encoding", [DEFAULT_ENCODING, Dense("float32"), TopK("float16", 5)])
@pytest.mark.parametrize(("samples", "classes"), [(6000, 10), (50_000, 100)])
def test_the_size_of_a_table_is_predicted(encoding: Dense | TopK, samples: int, classes: int, tmp_path: Path) -> None:
    one = Table(StoreLocation(tmp_path), "replay/seed-0/epoch-0000/standard", samples, encoding.layout(classes))
    list(fill_missing([(one, lambda span: encoding.encode(torch.randn(len(span), classes)))]))
    assert one.location.size() == pytest.approx(table_bytes(samples, classes, encoding), rel=0.02)


LOGITS = npst.arrays(np.float32, (3, 12), elements=st.floats(-100, 100, width=32))


@given(logits=LOGITS)
@settings(max_examples=100)
def test_codecs_are_idempotent(logits: np.ndarray) -> None:
    once = DEFAULT_ENCODING.decode(DEFAULT_ENCODING.encode(torch.from_numpy(logits)), 12)
    assert DEFAULT_ENCODING.decode(DEFAULT_ENCODING.encode(once), 12).equal(once)
    assert (
        Dense("float32").decode(Dense("float32").encode(torch.from_numpy(logits)), 12).equal(torch.from_numpy(logits))
    )


@given(logits=LOGITS)
@settings(max_examples=100)
def test_top_k_keeps_the_largest_logits_and_the_probability_of_the_rest(logits: np.ndarray) -> None:
    given_ = torch.from_numpy(logits)
    found = TopK("float32", 4).decode(TopK("float32", 4).encode(given_), 12)
    top = given_.topk(4, dim=1)
    assert found.gather(1, top.indices).equal(top.values)
    shares = [(x / 4).softmax(1).scatter(1, top.indices, 0).sum(1) for x in (given_, found)]
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-3, atol=1e-5)
    assert (kl_divergence(found, given_, 4.0) >= -1e-5).all()


def test_a_top_k_of_all_classes_is_refused_before_anything_is_written(noise: Split, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--topk: expected fewer than the 4 classes, got 4"):
        answers.store(tmp_path / "store.zarr", answers.teacher(), noise, TopK("float16", 4))
    assert list(tmp_path.iterdir()) == []


@given(keys=st.lists(st.lists(st.integers(0, 19), max_size=9), max_size=9))
@settings(max_examples=100)
def test_the_index_is_a_dictionary_that_keeps_the_first_row(keys: list[list[int]]) -> None:
    known: dict[int, float] = {}
    index = CropFlipLookup(20, 20, {"logits": (2, np.dtype("float32"))})
    for number, some in enumerate(keys):
        index.add(np.array(some, np.int64), {"logits": torch.full((len(some), 2), float(number))})
        for key in some:
            known.setdefault(key, float(number))
    hit, columns = index.lookup(np.arange(20))
    assert np.flatnonzero(hit).tolist() == sorted(known)
    assert columns["logits"].tolist() == [[known[key]] * 2 for key in sorted(known)]


MIX_NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,12}", fullmatch=True)
KINDS = st.one_of(st.just((STANDARD, 0)), st.tuples(MIX_NAMES, st.integers(1, 63)))


@given(first=KINDS, second=KINDS)
@settings(max_examples=200)
def test_kinds_of_views_can_be_parsed_and_differ_if_their_views_do(
    first: tuple[str, int], second: tuple[str, int]
) -> None:
    assert parse_kind(format_kind(*first)) == first
    assert (format_kind(*first) == format_kind(*second)) == (first == second)


@pytest.mark.parametrize("text", ["", "cutmix", "cutmix-0", "cutmix-01", "-1", "cut/mix-1", "cut mix-1", "standard-"])
def test_other_texts_are_not_kinds_of_views(text: str) -> None:
    with pytest.raises(ValueError, match="not a kind of view"):
        parse_kind(text)
    assert ReplayTableName.parse(f"replay/seed-0/epoch-0000/{text}") is None


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 20_000), kind=KINDS)
@settings(max_examples=100)
def test_names_of_replay_tables_can_be_parsed(seed: int, epoch: int, kind: tuple[str, int]) -> None:
    name = ReplayTableName(seed, epoch, format_kind(*kind))
    assert ReplayTableName.parse(name.path) == name
    assert ReplayTableName.parse(CLEAN) is None
