"""No file makes kdcache run code, leave its folder, or allocate the memory that the file claims."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache import checked_files
from kdcache.answers.encoding import DEFAULT_ENCODING, EncodedAnswers
from kdcache.answers.fingerprint import digest
from kdcache.answers.store import CLEAN, AnswerStore, ReplayTableName
from kdcache.answers.table import Table, fill_missing
from kdcache.cards import CARDS
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.config.settings import UNWRITABLE
from kdcache.datasets import packed
from kdcache.datasets.pictures import read_image
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.models import build, checkpoint, published, weights
from kdcache.run.folder import FinishedRun, find_finished_runs
from tests.alterations import MaliciousPickle
from tests.run_files import change_json

FACTS = {"teacher": "t", "dataset": "d", "teacher precision": "bfloat16", "samples": 120, "classes": 4}
ROWS = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)).half()
TABLES = (CLEAN, "replay/seed-3/epoch-0000/standard", "replay/seed-3/epoch-0001/standard")


def rows_of(span: range) -> EncodedAnswers:
    return {"logits": ROWS[span.start : span.stop]}


def opened(where: Path, **changes: object) -> AnswerStore:
    return AnswerStore.create_or_open(where, {**FACTS, **changes}, DEFAULT_ENCODING, {"torch": "2"})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    where = tmp_path / "answers.zarr"
    list(fill_missing([(opened(where).table(name), rows_of) for name in TABLES]))
    return where


def is_right(table: Table) -> bool:
    found = table.read(0)
    return found is not None and found["logits"].equal(ROWS)


# Stores


def test_filters_of_zarr_version_2_are_never_run(store: Path) -> None:
    ran, array = store.parent / "ran", store / CLEAN / "logits"
    filters = {"filters": [{"id": "pickle"}], "compressor": None, "order": "C", "fill_value": 0}
    text = {"zarr_format": 2, "shape": [120, 4], "chunks": [120, 4], "dtype": "<f2", **filters}
    (array / "zarr.json").unlink()
    (array / ".zarray").write_text(json.dumps(text))
    (array / "0.0").write_bytes(pickle.dumps(MaliciousPickle(ran)))
    table = opened(store).table(CLEAN)
    assert table.read(0) is None
    assert table.read_or_compute(0, rows_of) is not None
    assert is_right(opened(store).table(CLEAN))
    assert not ran.exists()


def test_other_codecs_are_refused_before_decompression(store: Path) -> None:
    import gzip

    array = store / CLEAN / "logits"
    text = json.loads((array / "zarr.json").read_text())
    text["codecs"] = [text["codecs"][0], {"name": "gzip", "configuration": {"level": 5}}]
    (array / "zarr.json").write_text(json.dumps(text))
    (array / "c" / "0" / "0").write_bytes(gzip.compress(ROWS.numpy().tobytes()))  # the content is right
    assert opened(store).table(CLEAN).read(0) is None


@pytest.mark.parametrize("link", ["replay", "clean", "clean/logits", "clean/logits/c/0/0"])
def test_links_in_a_store_are_not_followed(store: Path, link: str) -> None:
    elsewhere = store.parent / "elsewhere"
    os.replace(store / link, elsewhere)
    (store / link).symlink_to(elsewhere)
    before = sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("*"))
    tables = [opened(store).table(name) for name in TABLES]
    with pytest.raises(KdcacheError, match="got a symbolic link"):
        list(fill_missing([(table, rows_of) for table in tables]))
    with suppress(KdcacheError):
        opened(store).drop(TABLES)
    assert sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("*")) == before


@pytest.mark.parametrize("folder", ["clean", "clean/logits"])
def test_a_file_in_the_place_of_a_folder_of_a_store_is_named(store: Path, folder: str) -> None:
    shutil.rmtree(store / folder)
    (store / folder).write_text("mine")
    assert opened(store).table(CLEAN).read(0) is None
    with pytest.raises(KdcacheError, match=f"{folder} in a store: expected a folder, got a file. Remove the file."):
        list(fill_missing([(opened(store).table(CLEAN), rows_of)]))
    assert (store / folder).read_text() == "mine"


def test_a_store_that_links_to_itself_gives_one_message(tmp_path: Path) -> None:
    (tmp_path / "answers.zarr").symlink_to(tmp_path / "answers.zarr")
    with pytest.raises(UsageError, match=r"--store .*answers\.zarr"):
        opened(tmp_path / "answers.zarr")


def test_a_chunk_that_is_no_file_or_too_large_is_damaged(store: Path) -> None:
    chunk = store / CLEAN / "logits" / "c" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)  # reading from it would never end
    assert opened(store).table(CLEAN).read(0) is None
    chunk.unlink()
    with chunk.open("wb") as file:
        file.truncate(2**36)
    assert opened(store).table(CLEAN).read(0) is None


def test_a_table_in_the_place_of_another_is_noticed(store: Path) -> None:
    shutil.rmtree(store / TABLES[2])
    shutil.copytree(store / TABLES[1], store / TABLES[2])
    assert opened(store).table(TABLES[2]).read(0) is None
    assert is_right(opened(store).table(TABLES[1]))


def test_a_table_of_another_teacher_is_noticed(store: Path) -> None:
    other = store.with_name("other.zarr")
    opened(other, teacher="u")
    shutil.copytree(store / CLEAN, other / CLEAN)
    assert opened(other, teacher="u").table(CLEAN).read(0) is None


def test_damaged_groups_are_repaired(store: Path) -> None:
    for group in ("clean", "replay", "replay/seed-3/epoch-0000"):
        shutil.copy(store / CLEAN / "logits" / "zarr.json", store / group / "zarr.json")
    for name in TABLES:
        (store / name / "commits" / "zarr.json").unlink()
    list(fill_missing([(opened(store).table(name), rows_of) for name in TABLES]))
    assert all(is_right(opened(store).table(name)) for name in TABLES)


def restate(store: Path, change: Callable[[dict[str, Any]], object], forge: bool) -> None:
    """Change the attributes of a store, with a new checksum or the old one."""
    text = json.loads((store / "zarr.json").read_text())
    attributes = text["attributes"]
    change(attributes)
    if forge:
        attributes["sha256"] = digest({key: value for key, value in attributes.items() if key != "sha256"})
    (store / "zarr.json").write_text(json.dumps(text))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "precision": lambda found: found["fingerprint"].update({"teacher precision": "float32"}),
    "made with": lambda found: found["made_with"].update({"torch": "1"}),
    "no checksum": lambda found: found.pop("sha256"),
}
FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "samples": (lambda found: found["fingerprint"].update({"samples": 10**15}), "samples"),
    "true": (lambda found: found["fingerprint"].update({"samples": True}), "samples"),
    "classes": (lambda found: found["fingerprint"].update({"classes": 10**9}), "classes"),
    "no arithmetic": (lambda found: found["fingerprint"].update({"teacher precision": "float31"}), "teacher precision"),
    "type": (lambda found: found["encoding"].update({"dtype": "S1000000000"}), "encoding"),
    "top-k": (lambda found: found["encoding"].update({"topk": 10**9}), "topk"),
    "list": (lambda found: found.update({"fingerprint": [1]}), "damaged"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_altered_attributes_are_refused(store: Path, change: str) -> None:
    restate(store, CHANGES[change], forge=False)
    with pytest.raises(KdcacheError, match="do not match their checksum"):
        AnswerStore(store)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_impossible_attributes_give_one_message(store: Path, forgery: str) -> None:
    change, word = FORGERIES[forgery]
    restate(store, change, forge=True)
    with pytest.raises(KdcacheError, match=word) as caught:
        AnswerStore(store)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["replay/seed-007/epoch-0000/standard", f"replay/seed-{2**63}/epoch-0000/standard"])
def test_a_table_has_only_one_valid_name(name: str) -> None:
    assert ReplayTableName.parse("replay/seed-7/epoch-0000/standard") == (7, 0, "standard")
    assert ReplayTableName.parse(name) is None


# Configs and run folders


@pytest.mark.parametrize("key", ["out = 'x'", "overwrite = true", "download = true"])
def test_no_config_file_may_overwrite_or_download(tmp_path: Path, key: str) -> None:
    for text in (key, f"[teacher]\n{key}"):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(UsageError, match="is not allowed in a file"):
            TeacherConfig.load(tmp_path / "own.toml")


@pytest.mark.parametrize(
    "text", ["epochs = true", "lr = true", "a = " + "[" * 9000, "epochs = " + "9" * 5000, "batch_size = 10000000000"]
)
def test_an_absurd_config_gives_printable_messages(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        StudentConfig.load(tmp_path / "own.toml")
    assert all(line.isprintable() and len(line) < 1000 for line in caught.value.problems)


@given(text=st.text(st.characters(exclude_categories=()), min_size=1))
@settings(max_examples=300)
def test_every_text_is_recorded_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"dataset": f"folder:{text}", "features": (text,), "store": text}
    if UNWRITABLE.search(text):
        with pytest.raises(UsageError, match="text without control characters"):
            StudentConfig.load(**settings)
        return
    try:
        config = StudentConfig.load(**settings)
    except UsageError:
        assert text.startswith("~")  # the home folder of somebody unknown
        return
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(config.to_toml(), "utf-8")
    assert StudentConfig.load(path) == config


def test_a_run_with_an_incomplete_summary_is_skipped(teacher: Path, tmp_path: Path) -> None:
    for name in ("whole", "without", "odd", "deep"):
        shutil.copytree(teacher, tmp_path / name, ignore=shutil.ignore_patterns("answers"))
    change_json(tmp_path / "without" / "summary.json", finished_at=None)
    change_json(tmp_path / "odd" / "summary.json", kind=[], seconds="1")
    (tmp_path / "deep" / "summary.json").write_text("[" * 100_000)
    assert [run.path.name for run in find_finished_runs(tmp_path)] == ["whole"]
    (tmp_path / "whole" / "metrics.jsonl").write_text('{"epoch": 1}')
    with pytest.raises(UsageError, match=r"could not read .*metrics\.jsonl"):
        FinishedRun(tmp_path / "whole").read_metrics()


def test_a_message_is_one_printable_line_whatever_was_given() -> None:
    line = problem("what", expected="this", got="\x1b[2J\nsecond\ttext" + 10**6 * "x")
    assert line.startswith(r"what: expected this, got \x1b[2J\nsecond\ttext")
    assert line.isprintable()
    assert len(line) < 1000


# Published checkpoints


def state() -> dict[str, torch.Tensor]:
    return build("resnet8", num_classes=3, seed=4).body.state_dict()


def rewritten(path: Path, method: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    """Write an archive again, with valid checksums."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in [*contents.items(), *((f"published/{key}", value) for key, value in more.items())]:
            archive.writestr(name, content)


def one_bit(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(tensor) + len(tensor) // 2] ^= 1  # a bit between the entries would change nothing
    path.write_bytes(content)


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (one_bit, "CRC"),
    "packed": (lambda path: rewritten(path, zipfile.ZIP_DEFLATED), "compressed entries"),
    "two of a name": (lambda path: rewritten(path, VERSION=b"9"), "two entries with the same name"),
}


@pytest.mark.parametrize("way", ARCHIVES)
def test_archives_are_checked_before_torch_reads_them(way: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    torch.save(state(), path)
    change, message = ARCHIVES[way]
    change(path)
    with pytest.raises(UsageError, match=message):
        published.read(path)


ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "without content": lambda tensor: tensor.to("meta"),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.parametrize("way", ODD)
def test_tensors_of_unusual_kinds_are_named(way: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    torch.save({"model": {**state(), "fc.weight": ODD[way](state()["fc.weight"])}, "accuracy": torch.tensor([])}, path)
    with pytest.raises(UsageError, match=r"dense, of real numbers, got fc\.weight"):
        weights.load_into(build("resnet8", num_classes=3), published.read(path).entries, path)


def test_integers_are_not_accepted_as_weights(tmp_path: Path) -> None:
    rounded = {key: value.int() if key == "fc.weight" else value for key, value in state().items()}
    with pytest.raises(UsageError, match=r"another shape or type: .* got fc\.weight"):
        weights.load_into(build("resnet8", num_classes=3), {"": rounded}, "published.pth")


# Datasets


def test_a_small_file_that_claims_a_huge_image_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 4_000)).save(tmp_path / "huge.png")
    with pytest.raises(UsageError, match="20000 x 4000 pixels"):
        read_image(str(tmp_path / "huge.png"), 32)


def test_a_file_that_another_program_would_render_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "drawn.eps")
    os.replace(tmp_path / "drawn.eps", tmp_path / "drawn.png")  # Pillow would still run Ghostscript
    with pytest.raises(UsageError, match="cannot identify"):
        read_image(str(tmp_path / "drawn.png"), 32)


def elsewhere(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["images"] = np.zeros((10, 28, 28, 1), np.uint8)
    file["train/images"] = h5py.ExternalLink("other.h5", "images")


def raw(file: h5py.File) -> None:
    file.create_dataset("train/images", (1, 28, 28, 1), "u1", external=[("/etc/passwd", 0, 784)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10, 28, 28, 1), "u1")
    layout[:] = h5py.VirtualSource(".", "test/images", (10, 28, 28, 1))
    file.create_virtual_dataset("train/images", layout)


ARRAYS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "huge": (
        lambda file: file.create_dataset("train/images", (10**9, 28, 28, 1), "u1", chunks=(9, 28, 28, 1)),
        "does not fit into the file",
    ),
    "in another file": (elsewhere, "is stored in another file"),
    "any file at all": (raw, "is stored in another file"),
    "virtual": (virtual, "is stored in another file"),
    "text": (lambda file: file.create_dataset("train/images", data=["a", "b"]), "of type object"),
}


@pytest.mark.parametrize("way", ARRAYS)
def test_arrays_of_a_packed_file_must_be_in_it(way: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.h5"
    change, message = ARRAYS[way]
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": packed.FORMAT, "version": packed.VERSION, "class_names": list("abcdefghij")})
        for part in ("train", "test"):
            file[f"{part}/labels"] = np.arange(10)
        file["test/images"] = np.zeros((10, 28, 28, 1), np.uint8)
        change(file)
    with pytest.raises(UsageError, match=message):
        packed.read(path, CARDS["fashion-mini"])


# Checkpoints of kdcache: tests/test_models.py


def test_control_characters_in_class_names_are_escaped(tmp_path: Path) -> None:
    from tests.processes import kdcache

    run = tmp_path / "run"
    run.mkdir()
    names = ("\x1b[2Ja", "b\nc")
    checkpoint.save(build("resnet8", num_classes=2, seed=1), run / "model.safetensors", class_names=names)
    numbers = dict.fromkeys(("epochs", "last_top1", "last_top5", "best_top1", "best_epoch", "teacher_forwards"), 1)
    more = {
        "kind": "teacher",
        "dataset": "cifar10",
        "model": "resnet8",
        "cache_hits": 0,
        "seconds": 1,
        "finished_at": 1,
    }
    checked_files.write_json(run / "summary.json", {**numbers, **more})
    checked_files.write_toml(run / "config.toml", TeacherConfig.load().to_toml())
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    done = kdcache("predict", "run", "picture.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert r"\x1b[2Ja 0." in done.stdout
