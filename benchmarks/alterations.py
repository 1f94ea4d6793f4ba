"""How `fuzz.py` alters files: their bytes, the JSON or TOML in them, what they hold, or the files around them."""

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

__all__ = [
    "ODD",
    "Malice",
    "alter_archive",
    "alter_bytes",
    "alter_header",
    "alter_json",
    "alter_store",
    "alter_tensor",
    "alter_tree",
]


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
