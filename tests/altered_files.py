"""Kinds of files that `tests.fuzz` alters: configs, stores, packed datasets, images."""

import io
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from PIL import Image

from kdcache.answers import table
from kdcache.answers.encoding import DEFAULT_ENCODING, EncodedAnswers
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.cards import CARDS
from kdcache.config import StudentConfig
from kdcache.datasets import packed
from kdcache.datasets.pictures import read_image
from tests.alterations import alter_bytes, alter_document, alter_store


class Verdict(NamedTuple):
    """What happened to an altered file, in one word, and details of a failure."""

    word: str
    detail: str = ""


class FileKind:
    """Valid files of one kind, made once in a folder, and a way to alter and read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def try_altered(self, rng: Random) -> Verdict:
        """Alter a file, read it, and compare it with the original. May raise a `KdcacheError`: the file is rejected."""
        raise NotImplementedError


class Configs(FileKind):
    """Config files. An altered one is rejected, or is another valid config without unknown keys."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        settings: dict[str, Any] = {"aug": "cutmix-pick", "loss": "dkd:0.8+kd", "keep": 0.25, "milestones": (0.5, 0.75)}
        self.original = StudentConfig.load(**settings, store="here.zarr", cache_limit="2 GB")
        self.text = self.original.to_toml()

    def try_altered(self, rng: Random) -> Verdict:
        path = self.folder / "config.toml"
        if rng.random() < 0.5:
            path.write_bytes(alter_bytes(self.text.encode(), rng))
        elif rng.random() < 0.05:
            path.write_text(rng.choice(("a = " + "[" * 50_000, "a = " + "9" * 5000, "[student]\n" * 2, "[[student]]")))
        else:
            path.write_text(as_toml(alter_document(tomllib.loads(self.text), rng)), "utf-8", "surrogatepass")
        config = StudentConfig.load(path)
        if config == self.original:
            return Verdict("unchanged")
        rewritten = self.folder / "rewritten.toml"
        rewritten.write_text(config.to_toml(), "utf-8")
        if StudentConfig.load(rewritten) != config:
            return Verdict("wrong", "the config cannot be written and read again")
        document = tomllib.loads(path.read_text("utf-8"))
        keys = {*document, *document.get("student", {})} - {"student", "teacher"}
        unknown = keys - StudentConfig.model_fields.keys()
        return Verdict("wrong", f"unknown keys {unknown}") if unknown else Verdict("different")


def as_toml(document: Any) -> str:
    """Write an altered TOML document, even if it is not valid any more."""
    if not isinstance(document, dict):
        return json.dumps(document)
    return "\n".join(_toml_lines(document))


def _toml_lines(table: dict[str, Any], *names: str) -> Iterator[str]:
    for name, value in table.items():
        if not isinstance(value, dict):
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    for name, value in table.items():
        if isinstance(value, dict):
            yield f"[{'.'.join([*names, name])}]"
            yield from _toml_lines(value, *names, name)


class Stores(FileKind):
    """Stores. Each chunk has the original logits or is reported missing, and filling repairs the store."""

    SAMPLES, CLASSES = 150, 10
    TABLES = (CLEAN, "replay/seed-3/epoch-0000/standard", "replay/seed-3/epoch-0000/cutmix-1")
    MADE_WITH = {"torch": "2", "threads": 1}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        table.CHUNK_BYTES = 1000  # so that these small tables have several chunks
        self.rows = {
            name: torch.randn(self.SAMPLES, self.CLASSES, generator=torch.Generator().manual_seed(seed)).half()
            for seed, name in enumerate(self.TABLES)
        }
        facts = {"teacher": "t", "dataset": "d", "padding": 4, "plan version": 1, "teacher precision": "bfloat16"}
        self.fingerprint = {**facts, "samples": self.SAMPLES, "classes": self.CLASSES}
        self.original, self.outside = folder / "original.zarr", folder / "outside"
        self.fill(self.original)
        self.files = sorted(str(path.relative_to(self.original)) for path in self.original.rglob("*") if path.is_file())
        self.outside.mkdir()
        (self.outside / "zarr.json").write_text("not of the store")

    def open(self, path: Path) -> AnswerStore:
        return AnswerStore.create_or_open(path, self.fingerprint, DEFAULT_ENCODING, self.MADE_WITH)

    def rows_of(self, name: str) -> Callable[[range], EncodedAnswers]:
        return lambda span: {"logits": self.rows[name][span.start : span.stop]}

    def fill(self, path: Path) -> None:
        store = self.open(path)
        list(table.fill_missing([(store.table(name), self.rows_of(name)) for name in self.TABLES]))

    def check(self, path: Path) -> tuple[int, list[str]]:
        """Read every chunk: how many are missing, and which ones are wrong."""
        store, missing, wrong = self.open(path), 0, []
        for name in self.TABLES:
            one = store.table(name)
            for chunk, span in enumerate(one.chunks):
                columns = one.read(chunk)
                if columns is None:
                    missing += 1
                elif not columns["logits"].equal(self.rows_of(name)(span)["logits"]):
                    wrong.append(f"chunk {chunk} of {name} has other logits than were written")
        return missing, wrong

    def try_altered(self, rng: Random) -> Verdict:
        path = self.folder / "store.zarr"
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.original, path)
        for _ in range(rng.choice((1, 1, 2))):
            alter_store(path, rng.choice(self.files), self.outside, rng)
        try:
            store = AnswerStore(path)
            store.replay_tables()
            if (store.made_with, store.precision) != (self.MADE_WITH, "bfloat16"):
                return Verdict("wrong", "the store has other attributes")
            missing, wrong = self.check(path)
            if not wrong:
                self.fill(path)
                still_missing, wrong = self.check(path)
                wrong += [f"{still_missing} chunks are missing after filling"] if still_missing else []
        finally:
            (kept,) = self.outside.iterdir()
            assert kept.read_text() == "not of the store", "a file outside the store was changed"
        if wrong:
            return Verdict("wrong", "; ".join(wrong))
        return Verdict("rejected" if missing else "unchanged")


class PackedDatasets(FileKind):
    """Packed datasets. HDF5 has no checksum of a whole file; other images have another fingerprint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file = folder / "original.h5"
        generator = np.random.Generator(np.random.Philox(5))
        with h5py.File(self.file, "w") as file:
            file.attrs.update({"format": packed.FORMAT, "version": packed.VERSION, "class_names": list("abcdefghij")})
            for name, count in (("train", 40), ("test", 20)):
                pixels = generator.integers(0, 256, (count, 28, 28, 1), np.uint8)
                file.create_dataset(f"{name}/images", data=pixels, chunks=(10, 28, 28, 1), compression="gzip")
                file.create_dataset(f"{name}/labels", data=np.arange(count) % 10)
        self.content = self.file.read_bytes()
        self.original = self.read(self.file)

    def read(self, path: Path) -> tuple[object, ...]:
        found = packed.read(path, CARDS["fashion-mini"])
        return found.class_names, found.train.fingerprint, found.test.fingerprint

    def try_altered(self, rng: Random) -> Verdict:
        path = self.folder / "altered.h5"
        if rng.random() < 0.6:
            path.write_bytes(alter_bytes(self.content, rng))
        else:
            path.write_bytes(self.content)
            with h5py.File(path, "r+") as file:
                self.alter_contents(file, rng)
        return Verdict("unchanged" if self.read(path) == self.original else "different")

    def alter_contents(self, file: h5py.File, rng: Random) -> None:
        """Alter an array or an attribute through HDF5, so that the file itself stays valid."""
        key = rng.choice(("train/images", "train/labels", "test/images", "test/labels"))
        change = rng.choice(("delete", "array", "file", "link", "virtual", "raw", "attribute", "values"))
        if change == "values":
            file[key][...] = rng.randrange(12)
            return
        if change == "attribute":
            odd = (0, 2, 1.5, "x", ["a"] * 10, ["a"] * 9, h5py.Empty("f"), np.zeros((2, 5)))
            file.attrs[rng.choice(("format", "version", "class_names"))] = rng.choice(odd)
            return
        del file[key]
        match change:
            case "array":
                shapes = ((10**9, 28, 28, 1), (2**40, 32, 32, 3), (40, 2**20, 2**20, 3), (40,), (), (0,))
                shape = rng.choice((*shapes, (40, 28, 28, 1)))
                kind = rng.choice(("u1", "i8", "f4", "O", "S100", "c8", [("a", "u1")]))
                dtype = h5py.special_dtype(vlen=bytes) if kind == "O" else np.dtype(kind)
                chunks = None if not shape or 0 in shape else tuple(min(size, 16) for size in shape)
                file.create_dataset(key, shape, dtype, chunks=chunks)
            case "file":
                file[key] = h5py.ExternalLink(str(self.file), key)
            case "link":
                file[key] = h5py.SoftLink(rng.choice(("/nowhere", "/train", f"/{key}", "/test/images")))
            case "virtual":
                layout = h5py.VirtualLayout((40, 28, 28, 1), "u1")
                layout[:20] = h5py.VirtualSource(str(self.file), "test/images", (20, 28, 28, 1))
                file.create_virtual_dataset(key, layout)
            case "raw":
                file.create_dataset(key, (40, 28, 28, 1), "u1", external=[("/etc/passwd", 0, 40 * 784)])


class Images(FileKind):
    """Image files of a folder dataset, in formats that do not follow from their names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        pixels = np.random.Generator(np.random.Philox(5)).integers(0, 256, (40, 50, 3), np.uint8)
        self.originals = {}
        for format in ("PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "EPS"):
            Image.fromarray(pixels).save(buffer := io.BytesIO(), format)
            self.originals[format] = buffer.getvalue()

    def try_altered(self, rng: Random) -> Verdict:
        name = rng.choice(sorted(self.originals))
        content, path = self.originals[name], self.folder / "image.png"
        if rng.random() < 0.1:  # a small file that claims to be huge
            header = (10**5).to_bytes(4, "big") * 2 if name == "PNG" else b"P6 90000 90000 255\n"
            content = content[:16] + header + content[24:] if name == "PNG" else header + content[15:]
        path.write_bytes(alter_bytes(content, rng))
        found = read_image(str(path), 32)
        return Verdict("different" if found.shape == (3, 32, 32) else "wrong")
