"""The kinds of files that `fuzz.py` alters, networks aside: each is made once, and an altered copy is read."""

import json
import shutil
import tomllib
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from alterations import alter_bytes, alter_json, alter_store, alter_tree

__all__ = ["Configs", "Kind", "Outcome", "Packed", "Pictures", "Runs", "Stores"]


class Outcome(NamedTuple):
    """What came of an input, and what to say of it if that was bad."""

    word: str
    detail: str = ""


class Kind:
    """Valid files of a kind, and how they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def try_one(self, dice: Random) -> Outcome:
        """Alter, read, and compare with the original."""
        raise NotImplementedError


class Configs(Kind):
    """Config files: a changed one is refused, or is another valid config and says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from kdcache.config import StudentConfig

        self.kind = StudentConfig
        self.original = StudentConfig.load(
            aug="cutmix-pick",
            loss="crd:0.8+kd",
            store="here.zarr",
            cache_limit="2 GB",
            milestones=(0.5, 0.75),
            keep=0.25,
        )
        self.text = self.original.to_toml()

    def try_one(self, dice: Random) -> Outcome:
        path = self.folder / "config.toml"
        if dice.random() < 0.5:
            path.write_bytes(alter_bytes(self.text.encode(), dice))
        elif dice.random() < 0.05:
            path.write_text(dice.choice(("a = " + "[" * 50_000, "a = " + "9" * 5000, "[student]\n" * 2, "[[student]]")))
        else:
            path.write_text(as_toml(alter_tree(tomllib.loads(self.text), dice)), "utf-8", "surrogatepass")
        config = self.kind.load(path)
        if config == self.original:
            return Outcome("as the original")
        again = self.folder / "again.toml"
        again.write_text(config.to_toml(), "utf-8")
        if self.kind.load(again) != config:
            return Outcome("wrong", "what was read cannot be written and read again")
        document = tomllib.loads(path.read_text("utf-8"))
        stated = {**document, **document.get("student", {})}
        strays = stated.keys() - self.kind.model_fields.keys() - {"student", "teacher"}
        return Outcome("wrong", f"unknown keys {strays}") if strays else Outcome("as another")


def as_toml(tree: Any) -> str:
    """Write what was a TOML document, also where it is none any more."""
    if not isinstance(tree, dict):
        return json.dumps(tree)
    lines = []
    for name, table in tree.items():
        if isinstance(table, dict):
            lines += [
                f"[{name}]",
                *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()),
            ]
        else:
            lines.append(f"{name} = {json.dumps(table, ensure_ascii=False)}")
    return "\n".join(lines)


class Runs(Kind):
    """Run folders: settings, summary and metrics."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from kdcache.config import TeacherConfig
        from kdcache.run.folder import FinishedRun, find_finished_runs

        self.run, self.listed = FinishedRun, find_finished_runs
        numbers = {"epochs": 1, "last_top1": 50.0, "last_top5": 90.0, "best_top1": 50.0, "best_epoch": 1}
        more = {"teacher_forwards": 3, "cache_hits": 4, "seconds": 1.5, "finished_at": 1e9}
        summary = {"kind": "teacher", "dataset": "cifar10", "model": "resnet8", **numbers, **more}
        metrics = {"epoch": 1, "test_loss": 1.0, "test_top1": 50.0, "test_top5": 90.0, "seconds": 1.0}
        self.files = {
            "summary.json": json.dumps(summary).encode(),
            "metrics.jsonl": json.dumps(metrics).encode() + b"\n",
            "config.toml": TeacherConfig.load(dataset="cifar10").to_toml().encode(),
        }
        self.path = folder / "runs" / "one"
        self.path.mkdir(parents=True)
        self.original = self.read(self.files)

    def read(self, files: dict[str, bytes]) -> tuple[object, ...]:
        for name, content in files.items():
            (self.path / name).write_bytes(content)
        self.listed(self.path.parent)
        run = self.run(self.path)
        return run.summary, run.read_metrics(), run.config

    def try_one(self, dice: Random) -> Outcome:
        name = dice.choice(sorted(self.files))
        alter = alter_json if name.endswith(("json", "jsonl")) and dice.random() < 0.6 else alter_bytes
        found = self.read({**self.files, name: alter(self.files[name], dice)})
        return Outcome("as the original" if found == self.original else "as another")


class Stores(Kind):
    """Stores: each chunk is what was written, or known to be missing; then a fill makes the store whole again."""

    SAMPLES, CLASSES = 150, 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch

        from kdcache.answers import store, table
        from kdcache.answers.codec import DEFAULT_CODEC

        table.CHUNK_BYTES = 1000  # so that small tables have several chunks
        self.answers, self.fill_missing, self.codec = store, table.fill_missing, DEFAULT_CODEC
        self.tables = ("clean", "replay/seed-3/epoch-0000/standard", "replay/seed-3/epoch-0000/cutmix-1")
        self.rows = {
            name: torch.randn(self.SAMPLES, self.CLASSES, generator=torch.Generator().manual_seed(place)).half()
            for place, name in enumerate(self.tables)
        }
        facts = {"teacher": "t", "dataset": "d", "padding": 4, "plan version": 1, "teacher precision": "bfloat16"}
        self.fingerprint = {**facts, "samples": self.SAMPLES, "classes": self.CLASSES}
        self.original, self.elsewhere = folder / "original.zarr", folder / "elsewhere"
        self.mend(self.original)
        self.files = sorted(str(path.relative_to(self.original)) for path in self.original.rglob("*") if path.is_file())
        self.made_with = store.AnswerStore(self.original).made_with
        self.elsewhere.mkdir()
        (self.elsewhere / "zarr.json").write_text("another's")

    def open(self, where: Path) -> Any:
        return self.answers.AnswerStore.create_or_open(
            where, self.fingerprint, self.codec, {"torch": "2", "threads": 1}
        )

    def mend(self, where: Path) -> None:
        store = self.open(where)
        work = [(store.table(name), lambda span, name=name: self.compute_rows(name, span)) for name in self.tables]
        for _ in self.fill_missing(work):
            pass

    def compute_rows(self, name: str, span: range) -> dict[str, Any]:
        return {"logits": self.rows[name][span.start : span.stop]}

    def problems(self, where: Path, whole: bool) -> list[str]:
        """Read every chunk, and say what is neither right nor known to be missing."""
        store, found = self.open(where), []
        for name in self.tables:
            table = store.table(name)
            for chunk, span in enumerate(table.chunks):
                columns = table.read(chunk)
                if columns is None and whole:
                    found.append(f"chunk {chunk} of {name} is still missing")
                if columns is not None and not columns["logits"].equal(self.compute_rows(name, span)["logits"]):
                    found.append(f"chunk {chunk} of {name} is other than what was written")
                self.missing += columns is None
        return found

    def try_one(self, dice: Random) -> Outcome:
        path = self.folder / "store.zarr"
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.original, path)
        for _ in range(dice.choice((1, 1, 2))):
            alter_store(path, dice.choice(self.files), self.elsewhere, dice)
        self.missing = 0
        try:
            store = self.answers.AnswerStore(path)
            store.replay_tables()
            if (store.made_with, store.precision) != (self.made_with, "bfloat16"):
                return Outcome("wrong", "attributes are others")
            found = self.problems(path, whole=False)
            missing = self.missing
            if not found:
                self.mend(path)
                found = self.problems(path, whole=True)
        finally:
            there = {entry.name: entry.read_text() for entry in self.elsewhere.iterdir() if entry.is_file()}
            if there != {"zarr.json": "another's"} or len(list(self.elsewhere.iterdir())) > 1:
                raise AssertionError("something outside the store was written or removed")
        if found:
            return Outcome("wrong", "; ".join(found))
        return Outcome("refused" if missing else "as the original")


class Packed(Kind):
    """Packed datasets. HDF5 has no checksum of a whole file; other images are another dataset by their fingerprint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import h5py
        import numpy as np

        from kdcache.cards import CARDS
        from kdcache.datasets import packed

        self.h5py, self.np, self.packed = h5py, np, packed
        self.card = CARDS["fashion-mini"]
        self.file = folder / "original.h5"
        noise = np.random.Generator(np.random.Philox(5))
        with h5py.File(self.file, "w") as file:
            file.attrs.update({"format": packed.FORMAT, "version": packed.VERSION, "class_names": list("abcdefghij")})
            for name, count in (("train", 40), ("test", 20)):
                pixels = noise.integers(0, 256, (count, 28, 28, 1), np.uint8)
                file.create_dataset(f"{name}/images", data=pixels, chunks=(10, 28, 28, 1), compression="gzip")
                file.create_dataset(f"{name}/labels", data=np.arange(count) % 10)
        self.content = self.file.read_bytes()
        self.original = self.read(self.file)

    def read(self, path: Path) -> tuple[object, ...]:
        found = self.packed.read(path, self.card)
        return found.class_names, found.train.fingerprint, found.test.fingerprint

    def try_one(self, dice: Random) -> Outcome:
        path = self.folder / "altered.h5"
        if dice.random() < 0.6:
            path.write_bytes(alter_bytes(self.content, dice))
        else:
            path.write_bytes(self.content)
            self.rewrite(path, dice)
        return Outcome("as the original" if self.read(path) == self.original else "as another")

    def rewrite(self, path: Path, dice: Random) -> None:
        """Change what the file holds, by the library's own hand."""
        h5py, np = self.h5py, self.np
        key = dice.choice(("train/images", "train/labels", "test/images", "test/labels"))
        with h5py.File(path, "r+") as file:
            shape = dice.choice(
                ((10**9, 28, 28, 1), (2**40, 32, 32, 3), (40, 2**20, 2**20, 3), (40,), (), (0,), (40, 28, 28, 1))
            )
            kind = dice.choice(("u1", "i8", "f4", "O", "S100", "c8", [("a", "u1")]))
            match dice.randrange(8):
                case 0:
                    del file[key]
                case 1:
                    del file[key]
                    dtype = h5py.special_dtype(vlen=bytes) if kind == "O" else np.dtype(kind)
                    chunks = tuple(min(size, 16) or 1 for size in shape) or None
                    file.create_dataset(key, shape, dtype, chunks=chunks if 0 not in shape else None)
                case 2:
                    del file[key]
                    file[key] = h5py.ExternalLink(str(self.file), key)
                case 3:
                    del file[key]
                    file[key] = h5py.SoftLink(dice.choice(("/nowhere", "/train", f"/{key}", "/test/images")))
                case 4:
                    del file[key]
                    layout = h5py.VirtualLayout((40, 28, 28, 1), "u1")
                    layout[:20] = h5py.VirtualSource(str(self.file), "test/images", (20, 28, 28, 1))
                    file.create_virtual_dataset(key, layout)
                case 5:
                    del file[key]
                    file.create_dataset(key, (40, 28, 28, 1), "u1", external=[("/etc/passwd", 0, 40 * 784)])
                case 6:
                    name = dice.choice(("format", "version", "class_names"))
                    del file.attrs[name]
                    file.attrs[name] = dice.choice(
                        (0, 2, 1.5, "x", ["a"] * 10, ["a"] * 9, h5py.Empty("f"), np.zeros((2, 5)))
                    )
                case 7:
                    file[key][...] = dice.randrange(12)


class Pictures(Kind):
    """Pictures of a folder dataset, whatever their name says they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import io

        import numpy as np
        from PIL import Image

        from kdcache.datasets import pictures as reader

        self.reader = reader
        pixels = np.random.Generator(np.random.Philox(5)).integers(0, 256, (40, 50, 3), np.uint8)
        self.originals = {}
        for format in ("PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP", "GIF"):
            Image.fromarray(pixels).save(buffer := io.BytesIO(), format)
            self.originals[format] = buffer.getvalue()
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "EPS")
        self.originals["EPS"] = buffer.getvalue()

    def try_one(self, dice: Random) -> Outcome:
        name = dice.choice(sorted(self.originals))
        content, path = self.originals[name], self.folder / "picture.png"
        if dice.random() < 0.1:  # it says to be huge, and is small
            header = (10**5).to_bytes(4, "big") * 2 if name == "PNG" else b"P6 90000 90000 255\n"
            content = content[:16] + header + content[24:] if name == "PNG" else header + content[15:]
        path.write_bytes(alter_bytes(content, dice))
        found = self.reader.read_image(str(path), 32)
        return Outcome("as another" if found.shape == (3, 32, 32) else "wrong")
