"""Feed kdcache files that were altered at random, and see that each is refused in a line or read for what it is.

Valid files are made and then altered: bytes, the JSON or TOML in them, what they hold, or the files around them. Each
input follows from seed, kind and number, but for torch's old layout, whose files hold memory addresses;
``--only store:17`` repeats one. Exits with 1 where anything went wrong::

    python benchmarks/fuzz.py --inputs 2000 > docs/results/fuzz.md
"""

import argparse
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 30.0
"""Seconds after which an input counts as one at which kdcache hangs."""

MEMORY = 512 * 2**20
"""Bytes by which an input may raise the most memory that was taken so far."""

FINE = ("refused", "as the original", "as another")
BAD = ("traceback", "crash", "hang", "memory", "wrong")

Random = random.Random


class Outcome(NamedTuple):
    """What came of an input, and what to say of it if that was bad."""

    word: str
    detail: str = ""


# How files are altered.


def alter_bytes(content: bytes, dice: Random) -> bytes:
    """Alter some bytes, as a disk, a network or a hand might."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        place = dice.randrange(len(data) + 1) if dice.random() < 0.6 else dice.randrange(min(len(data) + 1, 600))
        end = min(len(data), place + dice.choice((1, 2, 8, 64, 1000)))
        if place >= len(data):
            data += dice.randbytes(dice.choice((1, 8, 100)))
            continue
        match dice.randrange(8):
            case 0 | 1:
                data[place] ^= 1 << dice.randrange(8)
            case 2:
                data[place] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22))
            case 3:
                data[place:end] = dice.randbytes(end - place)
            case 4:
                del data[place:end]
            case 5:
                data[place:place] = data[place:end]
            case 6:
                data[place:end] = bytes(end - place)
            case 7:
                del data[place:]
        if not data:
            break
    return bytes(data)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 63, 1000, 2**31, 2**63, 2**64, 10**12, 10**30, 0.5, 1e308, float("nan")),
    *(float("inf"), "", "x", "0", "../../x", "/etc/passwd", "\x00", "\x1b[2J", "é😀", "\ud800", "a" * 5000),
    *(
        "float16",
        "float32",
        "bfloat16",
        "int8",
        "object",
        "gzip",
        "python:os:system",
        [],
        {},
        [[]],
        [1, 2, 3],
        {"a": {}},
    ),
)


def alter_tree(tree: Any, dice: Random) -> Any:
    """Alter one place of what JSON or TOML hold: another value, no value, another name, one more."""
    if isinstance(tree, dict) and tree and dice.random() < 0.9:
        key = dice.choice(sorted(tree, key=str))
        match dice.randrange(10):
            case 0:
                return {name: value for name, value in tree.items() if name != key}
            case 1:
                name = dice.choice(("x", key + "s", key[:-1], key.upper(), ""))
                return {name if old == key else old: value for old, value in tree.items()}
            case 2:
                return {**tree, dice.choice(("x", "format", "dtype", key + "_")): dice.choice(ODD)}
            case 3:
                return {**tree, key: tree[dice.choice(sorted(tree, key=str))]}
        return {**tree, key: alter_tree(tree[key], dice)}
    if isinstance(tree, list) and tree and dice.random() < 0.8:
        place = dice.randrange(len(tree))
        match dice.randrange(4):
            case 0:
                return tree[:place] + tree[place + 1 :]
            case 1:
                return [*tree, dice.choice(ODD)]
        return [*tree[:place], alter_tree(tree[place], dice), *tree[place + 1 :]]
    if isinstance(tree, int | float) and not isinstance(tree, bool) and dice.random() < 0.5:
        return dice.choice((tree + 1, -tree, tree * 2, tree / 3, tree * 10**6, str(tree), [tree], tree > 0))
    return dice.choice(ODD)


def alter_json(content: bytes, dice: Random) -> bytes:
    """Alter JSON as a tree, or now and then as text that no parser likes."""
    if dice.random() < 0.03:
        return dice.choice((b"[" * 50_000, b'{"a":' * 50_000, b"1" * 5000, b"null", b"[]", b"\xff\xfe", b"NaN"))
    return json.dumps(alter_tree(json.loads(content), dice)).encode()


# The kinds of files. Each is made once in a folder of its own; `try_one` alters a copy and reads it.


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
        from kdcache.record import FinishedRun, finished_runs

        self.run, self.listed = FinishedRun, finished_runs
        numbers = {"epochs": 1, "last_top1": 50.0, "last_top5": 90.0, "best_top1": 50.0, "best_epoch": 1}
        more = {"questions_asked": 3, "questions_answered": 4, "seconds": 1.5, "finished_at": 1e9}
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
        return run.summary, run.metrics(), run.config

    def try_one(self, dice: Random) -> Outcome:
        name = dice.choice(sorted(self.files))
        alter = alter_json if name.endswith(("json", "jsonl")) and dice.random() < 0.6 else alter_bytes
        found = self.read({**self.files, name: alter(self.files[name], dice)})
        return Outcome("as the original" if found == self.original else "as another")


class Checkpoints(Kind):
    """Networks that kdcache wrote: an altered one is refused, unless whoever altered it made the checksum right."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from kdcache import tensors
        from kdcache.models import build, checkpoint

        self.checkpoint, self.tensors = checkpoint, tensors
        path = folder / "original.safetensors"
        checkpoint.save(build("resnet8", num_classes=3, seed=1), path, class_names=("a", "b", "c"), epoch=1)
        self.content = path.read_bytes()
        self.state, self.facts = tensors.load(path, checkpoint.FORMAT)
        self.original = checkpoint.fingerprint(checkpoint.load(path)), self.facts

    def try_one(self, dice: Random) -> Outcome:
        path = self.folder / "model.safetensors"
        forged = dice.random() < 0.25
        if forged:
            state, facts = dict(self.state), alter_tree(self.facts, dice)
            if dice.random() < 0.3:
                key = dice.choice(sorted(state))
                state[key] = alter_tensor(state[key], dice)
            if not isinstance(facts, dict):
                facts = {"format": facts}
            facts.pop("sha256", None)
            self.tensors.save(path, state, facts)
        elif dice.random() < 0.5:
            path.write_bytes(alter_bytes(self.content, dice))
        else:
            path.write_bytes(alter_header(self.content, dice))
        network = self.checkpoint.load(path)
        facts = {key: value for key, value in self.checkpoint.metadata(path).items() if key != "sha256"}
        if (self.checkpoint.fingerprint(network), facts) == self.original:
            return Outcome("as the original")
        return Outcome("as another" if forged else "wrong", f"facts {facts}")


def alter_header(content: bytes, dice: Random) -> bytes:
    """Alter the JSON at the beginning of a safetensors file, what kdcache wrote in there too."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if "__metadata__" in header and dice.random() < 0.5:
        facts = header["__metadata__"]["kdcache"].encode()
        header["__metadata__"]["kdcache"] = alter_json(facts, dice).decode("latin-1")
        text = json.dumps(header).encode()
    else:
        text = alter_json(content[8 : 8 + size], dice)
    stated = len(text) if dice.random() < 0.9 else dice.choice((0, 1, 2**20, 2**40, 2**63, len(text) + 8))
    return stated.to_bytes(8, "little") + text + content[8 + size :]


def alter_tensor(tensor: Any, dice: Random) -> Any:
    """Make another tensor of one."""
    import torch

    choices: list[Callable[[], Any]] = [
        lambda: tensor.double(),
        lambda: tensor.to(torch.int32),
        lambda: tensor.reshape(-1),
        lambda: tensor[..., None].contiguous(),
        lambda: torch.full_like(tensor, 7),
        lambda: torch.zeros(0, 3),
        lambda: tensor.to(torch.bool),
        lambda: tensor.float() * float("nan"),
    ]
    return dice.choice(choices)()


class Published(Kind):
    """Networks that others wrote. Only torch's archives have checksums; elsewhere other bytes are another network."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        from safetensors.torch import save_file

        from kdcache.models import build, checkpoint, published

        self.build, self.checkpoint, self.published = build, checkpoint, published
        self.state = {
            key: value.contiguous() for key, value in build("resnet8", num_classes=3, seed=1).body.state_dict().items()
        }
        document = {"model": self.state, "accuracy": torch.tensor(75.0), "epoch": 3}
        torch.save(document, folder / "zip.pth")
        torch.save(document, folder / "old.pth", _use_new_zipfile_serialization=False)
        save_file(self.state, folder / "other.safetensors")
        self.originals = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.fingerprint = self.read(folder / "zip.pth", recognise=True)

    def read(self, path: Path, recognise: bool) -> str:
        found = self.published.read(path)
        if recognise:  # which takes long: the file is compared with every network
            self.published.closest(found.state)
        network = self.build("resnet8", num_classes=3, seed=2)
        self.published.fit(network, found.state, path)
        return str(self.checkpoint.fingerprint(network))

    def try_one(self, dice: Random) -> Outcome:
        name = dice.choice(sorted(self.originals))
        path = self.folder / f"altered-{name}"
        rewritten = dice.random() < 0.4
        if not rewritten:
            path.write_bytes(alter_bytes(self.originals[name], dice))
        elif name == "other.safetensors":
            path.write_bytes(alter_header(self.originals[name], dice))
        elif name == "zip.pth" and dice.random() < 0.5:
            alter_archive(self.folder / name, path, dice)
        else:
            self.save_another(path, dice, new=name == "zip.pth")
        found = self.read(path, recognise=dice.random() < 0.1)
        if found == self.fingerprint:
            return Outcome("as the original")
        if name == "zip.pth" and not rewritten:
            return Outcome("wrong", "altered bytes of an archive were read")
        return Outcome("as another")

    def save_another(self, path: Path, dice: Random, new: bool) -> None:
        """Write what torch can write and no network wants."""
        import torch

        state: dict[Any, Any] = dict(self.state)
        key = dice.choice(sorted(state))
        shape = state[key].shape
        odd: list[Callable[[], Any]] = [
            lambda: alter_tensor(state[key], dice),
            lambda: torch.zeros(shape).to_sparse(),
            lambda: torch.zeros(shape, device="meta"),
            lambda: torch.zeros(shape, dtype=torch.complex64),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
            lambda: Malice(),
            lambda: dice.choice(ODD),
        ]
        state[key] = dice.choice(odd)()
        if dice.random() < 0.2:
            state[dice.choice((7, None, ("a", "b"), 2.5, "\x1b"))] = state.pop(key)
        document = dice.choice((state, {"model": state}, {"net": state, "accuracy": state[next(iter(state))]}, [state]))
        torch.save(document, path, _use_new_zipfile_serialization=new)


class Malice:
    """What would run a command, if a pickle with it were read without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def alter_archive(path: Path, target: Path, dice: Random) -> None:
    """Write a torch archive anew, with checksums that are right and other contents."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as made:
        victim = dice.choice(source.namelist())
        way = dice.randrange(6)
        for name in source.namelist():
            content = source.read(name)
            if name == victim and way == 0:
                continue
            if name == victim and way == 1:
                content = alter_bytes(content, dice)
            method = zipfile.ZIP_DEFLATED if way == 2 else zipfile.ZIP_STORED
            renamed = (
                dice.choice(("../../x", "/tmp/x", name.upper(), "a" * 300)) if name == victim and way == 3 else name
            )
            if name.endswith("data.pkl") and way == 4:
                content = dice.choice((pickle.dumps(Malice()), pickle.dumps({"a": 1}), b"", b"\x80\x02.", b"(" * 10**5))
            made.writestr(renamed, content, method)
            if name == victim and way == 5:
                made.writestr(name.upper() if dice.random() < 0.5 else name + "0", alter_bytes(content, dice), method)


class Stores(Kind):
    """Stores: each chunk is what was written, or known to be missing; then a fill makes the store whole again."""

    SAMPLES, CLASSES = 150, 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch

        from kdcache.store import answers, table
        from kdcache.store.formats import DENSE

        table.CHUNK_BYTES = 1000  # so that small tables have several chunks
        self.answers, self.fill, self.format = answers, table.fill, DENSE
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
        self.made_with = answers.AnswerStore(self.original).made_with
        self.elsewhere.mkdir()
        (self.elsewhere / "zarr.json").write_text("another's")

    def open(self, where: Path) -> Any:
        return self.answers.AnswerStore.open(where, self.fingerprint, self.format, {"torch": "2", "threads": 1})

    def mend(self, where: Path) -> None:
        store = self.open(where)
        asks = [(store.table(name), lambda span, name=name: self.ask(name, span)) for name in self.tables]
        for _ in self.fill(asks):
            pass

    def ask(self, name: str, span: range) -> dict[str, Any]:
        return {"logits": self.rows[name][span.start : span.stop]}

    def faults(self, where: Path, whole: bool) -> list[str]:
        """Read every chunk, and say what is neither right nor known to be missing."""
        store, found = self.open(where), []
        for name in self.tables:
            table = store.table(name)
            for chunk, span in enumerate(table.chunks):
                columns = table.read(chunk)
                if columns is None and whole:
                    found.append(f"chunk {chunk} of {name} is still missing")
                if columns is not None and not columns["logits"].equal(self.ask(name, span)["logits"]):
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
            store.replayed()
            if (store.made_with, store.precision) != (self.made_with, "bfloat16"):
                return Outcome("wrong", "attributes are others")
            found = self.faults(path, whole=False)
            missing = self.missing
            if not found:
                self.mend(path)
                found = self.faults(path, whole=True)
        finally:
            there = {entry.name: entry.read_text() for entry in self.elsewhere.iterdir() if entry.is_file()}
            if there != {"zarr.json": "another's"} or len(list(self.elsewhere.iterdir())) > 1:
                raise AssertionError("something outside the store was written or removed")
        if found:
            return Outcome("wrong", "; ".join(found))
        return Outcome("refused" if missing else "as the original")


def alter_store(root: Path, name: str, elsewhere: Path, dice: Random) -> None:
    """Alter one file of a store, or what lies in its place."""
    path = root / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 2**20:
        return  # it was altered already
    match dice.randrange(12):
        case 0:
            path.unlink()
        case 1:
            others = [other for other in root.rglob("*") if other.is_file() and other.suffix == path.suffix]
            shutil.copy(dice.choice(others), path.with_name("taken"))
            os.replace(path.with_name("taken"), path)
        case 2:  # a whole array or table in the place of another
            places = [
                folder for folder in sorted(root.rglob("*")) if folder.is_dir() and (folder / "zarr.json").is_file()
            ]
            source, target = dice.choice(places), dice.choice(places)
            if source != target and source not in target.parents and target not in source.parents:
                shutil.rmtree(target)
                with suppress(shutil.Error):  # at what is no file, after an alteration before this one
                    shutil.copytree(source, target)
        case 3:
            path.unlink()
            path.mkdir()
        case 4:
            folder = dice.choice((path, path.parent))
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
            folder.symlink_to(dice.choice((elsewhere, elsewhere / "zarr.json", Path("/dev/zero"), folder)))
        case 5:
            path.unlink()
            os.mkfifo(path)
        case 6:
            with path.open("r+b") as file:
                file.truncate(2**36)  # it takes no room on the disk
        case 7:
            for old in (".zarray", ".zgroup"):
                filters = '"filters":[{"id":"pickle"}],"compressor":null,"order":"C","fill_value":0'
                array = f'{{"zarr_format":2,"shape":[150,10],"chunks":[50,10],"dtype":"<f2",{filters}}}'
                path.with_name(old).write_text(array if old == ".zarray" else '{"zarr_format":2}')
            path.write_bytes(pickle.dumps(Malice()))
        case 8 | 9 if path.suffix == ".json":
            path.write_bytes(alter_json(path.read_bytes(), dice))
        case _:
            path.write_bytes(alter_bytes(path.read_bytes(), dice))


class Packed(Kind):
    """Packed datasets. HDF5 has no checksum of a whole file; other images are another dataset by their fingerprint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import h5py
        import numpy as np

        from kdcache.datasets import packed
        from kdcache.datasets.cards import CARDS

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


KINDS: dict[str, type[Kind]] = {
    "config": Configs,
    "run folder": Runs,
    "checkpoint": Checkpoints,
    "published": Published,
    "store": Stores,
    "packed": Packed,
    "picture": Pictures,
}


# Inputs are tried in a process of their own, which may hang or die.


def work(kind: str, folder: Path, seed: int, numbers: range, pipe: Connection) -> None:
    """Try inputs one after the other, and send what came of each."""
    from kdcache.errors import KdcacheError

    logging.disable()
    os.chdir(folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, what libraries grumble at
    maker = KINDS[kind](Path(tempfile.mkdtemp(dir=folder)))
    pipe.send(None)
    for number in numbers:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = maker.try_one(Random(f"{seed} {kind} {number}"))
        except KdcacheError as error:
            lines = str(error).split("\n")
            clear = all(line.isprintable() and line for line in lines)
            outcome = Outcome("refused") if clear else Outcome("wrong", f"unclear message {lines}")
        except BaseException:
            outcome = Outcome("traceback", traceback.format_exc())
        if 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > MEMORY:
            outcome = Outcome("memory", outcome.word)
        if (folder / "ran").exists():
            outcome = Outcome("wrong", "code of a file was run")
            (folder / "ran").unlink()
        pipe.send((number, outcome))


def run_kind(kind: str, folder: Path, seed: int, numbers: range) -> dict[int, Outcome]:
    """Try inputs of a kind."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # with what `main` imported
    found: dict[int, Outcome] = {}
    while left := range(numbers.start + len(found), numbers.stop):
        mine, its = context.Pipe()
        worker = context.Process(target=work, args=(kind, folder, seed, left, its), daemon=True)
        worker.start()
        its.close()
        try:
            ready = mine.poll(120) and mine.recv() is None
            assert ready, f"{kind} cannot be made"
            while left:
                if not mine.poll(PATIENCE):
                    found[left.start] = Outcome("hang")
                    break
                number, found[left.start] = mine.recv()
                left = range(number + 1, numbers.stop)
        except EOFError:
            found[left.start] = Outcome("crash")
        finally:
            worker.kill()
            worker.join()
    return found


def main() -> int:
    """Try all kinds, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND[:NUMBER]", help="try one kind, or one of its inputs, alone")
    chosen = parser.parse_args()
    for module in ("torch", "h5py", "kdcache.resolve", "kdcache.datasets.pictures", "kdcache.datasets.packed"):
        import_module(module)
    only, _, number = (chosen.only or "").partition(":")
    numbers = range(int(number), int(number) + 1) if number else range(chosen.inputs)
    kinds = [only] if only else list(KINDS)
    started, rows, bad = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory() as name:
        for kind in kinds:
            outcomes = run_kind(kind, Path(name) / kind.replace(" ", "-"), chosen.seed, numbers)
            counts = Counter(outcome.word for outcome in outcomes.values())
            rows.append([kind, len(outcomes), *(counts[word] for word in (*FINE, *BAD))])
            for place, outcome in outcomes.items():
                if outcome.word in BAD:
                    bad += 1
                    print(f"{kind}:{place} with seed {chosen.seed}: {outcome.word} {outcome.detail}", file=sys.stderr)
    if not number:
        print_page(rows, time.perf_counter() - started)
    return 1 if bad else 0


def print_page(rows: list[list[object]], seconds: float) -> None:
    """Print the page of results."""
    from common import footer

    total = sum(int(str(row[1])) for row in rows)
    print(f"""# Files that were altered

{total} inputs in {seconds:.0f} s: valid files of each kind, of which bytes, the JSON or TOML in them, what they hold,
or the files around them were altered at random. Every input is tried in a process that may die without the others.

- *refused*: an error of kdcache's own, each line printable; of a store also that a chunk was found missing or damaged,
  was not used, and was made again
- *as another*: read as the other valid thing that it now is, where the format has no checksum or the alteration came
  with a right one: a config with another value; images or weights with another fingerprint, which a store refuses
- *memory*: more than {MEMORY // 2**20} MB taken for an input; *hang*: more than {PATIENCE:.0f} s
- *wrong*: read as whole where it is not, code of a file run, or something outside a store written

| kind | inputs | {" | ".join((*FINE, *BAD))} |
| --- |{" ---: |" * (1 + len(FINE) + len(BAD))}""")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(footer())


if __name__ == "__main__":
    sys.exit(main())
