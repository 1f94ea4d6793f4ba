"""Random alterations of files: of their bytes, of the JSON or TOML in them, of their contents, of the files around."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch

DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "bit flipped": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "truncated": lambda content: content[:-3],
    "emptied": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "deleted": None,
}
"""Damage that every store must detect in every one of its files."""


def damage_file(path: Path, name: str) -> None:
    """Damage a file in one of the `DAMAGES`."""
    change = DAMAGES[name]
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))


def alter_bytes(content: bytes, rng: Random) -> bytes:
    """Alter some bytes, as a failing disk, a broken transfer or an editor would."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        start = rng.randrange(len(data) + 1) if rng.random() < 0.6 else rng.randrange(min(len(data) + 1, 600))
        end = min(len(data), start + rng.choice((1, 2, 8, 64, 1000)))
        if start >= len(data):
            data += rng.randbytes(rng.choice((1, 8, 100)))
            continue
        match rng.randrange(8):
            case 0 | 1:
                data[start] ^= 1 << rng.randrange(8)
            case 2:
                data[start] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22))
            case 3:
                data[start:end] = rng.randbytes(end - start)
            case 4:
                del data[start:end]
            case 5:
                data[start:start] = data[start:end]
            case 6:
                data[start:end] = bytes(end - start)
            case 7:
                del data[start:]
        if not data:
            break
    return bytes(data)


UNEXPECTED: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 63, 1000, 2**31, 2**63, 2**64, 10**12, 10**30, 0.5, 1e308, float("nan")),
    *(float("inf"), "", "x", "0", "../../x", "/etc/passwd", "\x00", "\x1b[2J", "é😀", "\ud800", "a" * 5000),
    *("float16", "float32", "bfloat16", "int8", "object", "gzip", "python:os:system"),
    *([], {}, [[]], [1, 2, 3], {"a": {}}),
)
"""Values that a field may be given instead of its own."""


def alter_document(document: Any, rng: Random) -> Any:
    """Alter one place of a parsed JSON or TOML document: change, delete, rename or add a value."""
    if isinstance(document, dict) and document and rng.random() < 0.9:
        key = rng.choice(sorted(document, key=str))
        match rng.randrange(10):
            case 0:
                return {name: value for name, value in document.items() if name != key}
            case 1:
                name = rng.choice(("x", key + "s", key[:-1], key.upper(), ""))
                return {name if old == key else old: value for old, value in document.items()}
            case 2:
                return {**document, rng.choice(("x", "format", "dtype", key + "_")): rng.choice(UNEXPECTED)}
            case 3:
                return {**document, key: document[rng.choice(sorted(document, key=str))]}
        return {**document, key: alter_document(document[key], rng)}
    if isinstance(document, list) and document and rng.random() < 0.8:
        place = rng.randrange(len(document))
        match rng.randrange(4):
            case 0:
                return document[:place] + document[place + 1 :]
            case 1:
                return [*document, rng.choice(UNEXPECTED)]
        return [*document[:place], alter_document(document[place], rng), *document[place + 1 :]]
    if isinstance(document, int | float) and not isinstance(document, bool) and rng.random() < 0.5:
        numbers = (document + 1, -document, document * 2, document / 3, document * 10**6)
        return rng.choice((*numbers, str(document), [document], document > 0))
    return rng.choice(UNEXPECTED)


def alter_json(content: bytes, rng: Random) -> bytes:
    """Alter JSON as a document, or sometimes replace it by text that is hard to parse."""
    if rng.random() < 0.03:
        return rng.choice((b"[" * 50_000, b'{"a":' * 50_000, b"1" * 5000, b"null", b"[]", b"\xff\xfe", b"NaN"))
    return json.dumps(alter_document(json.loads(content), rng)).encode()


def alter_safetensors_header(content: bytes, rng: Random) -> bytes:
    """Alter the JSON header of a safetensors file, including kdcache's metadata in it, or the stated header size."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if "__metadata__" in header and rng.random() < 0.5:
        metadata = header["__metadata__"]["kdcache"].encode()
        header["__metadata__"]["kdcache"] = alter_json(metadata, rng).decode("latin-1")
        text = json.dumps(header).encode()
    else:
        text = alter_json(content[8 : 8 + size], rng)
    stated = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**20, 2**40, 2**63, len(text) + 8))
    return stated.to_bytes(8, "little") + text + content[8 + size :]


def alter_tensor(tensor: torch.Tensor, rng: Random) -> torch.Tensor:
    """Change dtype, shape or values of a tensor."""
    choices: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.double(),
        lambda: tensor.to(torch.int32),
        lambda: tensor.reshape(-1),
        lambda: tensor[..., None].contiguous(),
        lambda: torch.full_like(tensor, 7),
        lambda: torch.zeros(0, 3),
        lambda: tensor.to(torch.bool),
        lambda: tensor.float() * float("nan"),
    ]
    return rng.choice(choices)()


class MaliciousPickle:
    """Creates a file when it is unpickled without precautions."""

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def alter_archive(path: Path, target: Path, rng: Random) -> None:
    """Rewrite a torch archive with valid checksums and other contents."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        victim = rng.choice(source.namelist())
        change = rng.choice(("delete", "bytes", "compress", "rename", "pickle", "duplicate"))
        method = zipfile.ZIP_DEFLATED if change == "compress" else zipfile.ZIP_STORED
        pickles = (pickle.dumps(MaliciousPickle("ran")), pickle.dumps({"a": 1}), b"", b"\x80\x02.", b"(" * 10**5)
        for name in source.namelist():
            content, new_name = source.read(name), name
            if name == victim and change == "delete":
                continue
            if name == victim and change == "bytes":
                content = alter_bytes(content, rng)
            if name == victim and change == "rename":
                new_name = rng.choice(("../../x", "/tmp/x", name.upper(), "a" * 300))
            if name.endswith("data.pkl") and change == "pickle":
                content = rng.choice(pickles)
            archive.writestr(new_name, content, method)
            if name == victim and change == "duplicate":
                archive.writestr(rng.choice((name.upper(), name + "0")), alter_bytes(content, rng), method)


def alter_store(root: Path, name: str, outside: Path, rng: Random) -> None:
    """Alter one file of a store, or replace it by something else."""
    path = root / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 2**20:
        return  # it was altered before
    match rng.randrange(12):
        case 0:
            path.unlink()
        case 1:
            others = [other for other in root.rglob("*") if other.is_file() and other.suffix == path.suffix]
            shutil.copy(rng.choice(others), path.with_name("copied"))
            os.replace(path.with_name("copied"), path)
        case 2:  # replace a whole array or table by another one
            groups = [path.parent for path in sorted(root.rglob("zarr.json")) if not path.parent.is_symlink()]
            groups = [group for group in groups if group != root]
            source, target = rng.choice(groups), rng.choice(groups)
            if source != target and source not in target.parents and target not in source.parents:
                shutil.rmtree(target)
                with suppress(shutil.Error):  # a special file from an earlier alteration
                    shutil.copytree(source, target)
        case 3:
            path.unlink()
            path.mkdir()
        case 4:
            linked = rng.choice((path, path.parent))
            shutil.rmtree(linked) if linked.is_dir() else linked.unlink()
            linked.symlink_to(rng.choice((outside, outside / "zarr.json", Path("/dev/zero"), linked)))
        case 5:
            path.unlink()
            os.mkfifo(path)
        case 6:
            with path.open("r+b") as file:
                file.truncate(2**36)  # a sparse file
        case 7:  # an array of zarr's version 2, whose filters would unpickle
            filters = {"filters": [{"id": "pickle"}], "compressor": None, "order": "C", "fill_value": 0}
            array = {"zarr_format": 2, "shape": [150, 10], "chunks": [50, 10], "dtype": "<f2", **filters}
            path.with_name(".zarray").write_text(json.dumps(array))
            path.with_name(".zgroup").write_text('{"zarr_format": 2}')
            path.write_bytes(pickle.dumps(MaliciousPickle("ran")))
        case 8 | 9 if path.suffix == ".json":
            path.write_bytes(alter_json(path.read_bytes(), rng))
        case _:
            path.write_bytes(alter_bytes(path.read_bytes(), rng))
