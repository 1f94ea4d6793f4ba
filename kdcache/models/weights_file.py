"""Files of weights: what a file is by its content, and its tensors and plain data. No code in a file is run."""

import json
import pickle
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from kdcache.errors import UsageError, abbreviated, first_line, is_out_of_memory, problem
from kdcache.models.plain_data import SAFE_GLOBALS

__all__ = ["SAVE_STATE", "read_document"]

MAX_JSON_BYTES = 64 * 2**20
"""Size above which text is not parsed as JSON: an index of shards is smaller."""

MAX_NAMES_LISTED = 5

HEAD_BYTES = 512

ZIP = (b"PK\x03\x04", b"PK\x05\x06")

PICKLE = b"\x80"
"""First byte of a pickle, the format of torch.save before version 1.6."""

CHECKPOINT = "a complete checkpoint, of safetensors or torch.save"

UNPACK = "Unpack it, and name the file of weights inside."
FETCH_AGAIN = "Download or copy it again."
SAVE_STATE = "In the project that it comes from, save the network's state_dict() with torch.save."


class Kind(NamedTuple):
    """What a file is, if it is no checkpoint, and what to do."""

    what: str
    remedy: str | None = None


MAGIC = {
    b"\x1f\x8b": Kind("a file compressed with gzip", UNPACK),
    b"BZh": Kind("a file compressed with bzip2", UNPACK),
    b"\xfd7zXZ\x00": Kind("a file compressed with xz", UNPACK),
    b"\x28\xb5\x2f\xfd": Kind("a file compressed with zstd", UNPACK),
    b"7z\xbc\xaf\x27\x1c": Kind("a 7z archive", UNPACK),
    b"Rar!": Kind("a RAR archive", UNPACK),
    b"\x89HDF\r\n\x1a\n": Kind("an HDF5 file, such as Keras writes"),
    b"\x93NUMPY": Kind("an array of NumPy"),
    b"GGUF": Kind("a GGUF file"),
}
"""Formats by their first bytes."""

_SHARD = re.compile(r"\d{5}-of-(\d{5})")
ONNX_FILE = "an ONNX file"

_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a]")
_ADVICE = re.compile(r"weights_only|safe_globals|torch\.(jit\.)?load", re.IGNORECASE)
"""Marks torch's advice, which includes to let the code of a file run. It is never passed on."""


def read_document(path: Path) -> dict[Any, Any]:
    """Read the dictionary in a file of safetensors or ``torch.save``, whatever its suffix.

    The metadata of a safetensors file stand beside its tensors, as values of JSON where they are JSON.

    Raises
    ------
    UsageError
        If the file is missing, damaged, contains code, or is something else, which the message names.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no regular file" if path.exists() else "nothing"
        raise UsageError(problem(f"weights {path}", expected="a file", got=got, remedy=_files_in(path)))
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UsageError(problem(f"could not read weights {path}", got=error.strerror)) from error
    if kind := _foreign_kind(path, head):
        raise UsageError(problem(f"weights {path}", expected=CHECKPOINT, got=kind.what, remedy=kind.remedy))
    return _load_safetensors(path) if _is_safetensors(path, head) else _load_pickle(path)


def is_onnx_file(path: Path) -> bool:
    """Whether a file begins as ONNX files do, and is not another kind of file."""
    if not path.is_file():  # a FIFO would be waited for
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    kind = _foreign_kind(path, head)
    return kind is not None and kind.what == ONNX_FILE


def _files_in(folder: Path) -> str | None:
    found = [file for suffix in ("safetensors", "pth", "pt", "bin", "ckpt") for file in folder.glob(f"*.{suffix}")]
    names = abbreviated((file.name for file in found), MAX_NAMES_LISTED)
    return f"Name the file of weights inside, such as {names}." if names else None


def _is_safetensors(path: Path, head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _foreign_kind(path: Path, head: bytes) -> Kind | None:
    """Tell what a file is, if it is not a checkpoint."""
    shards = _SHARD.search(path.name)
    is_zip = head.startswith(ZIP)  # torch goes by the beginning, and zipfile by the end, which may be another file's
    if shards and int(shards[1]) > 1 and (_is_safetensors(path, head) or is_zip):
        return Kind(f"one of {int(shards[1])} shards", "Save all of them in one file.")
    if not head.strip(b"\0"):
        return Kind("zeros, as an incomplete download leaves") if head else Kind("an empty file")
    if kind := next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None):
        return kind
    if is_zip:
        return _kind_of_zip(path)
    if _is_safetensors(path, head):
        return None
    if found := _kind_of_tar(path) or _kind_of_text(path, head):
        return found
    if _ONNX.match(head):
        return Kind(ONNX_FILE)
    if head[8:9] == b"{":
        return Kind("the beginning of a safetensors file", FETCH_AGAIN)
    return None if head.startswith(PICKLE) else Kind("a file of another format")


def _kind_of_zip(path: Path) -> Kind | None:
    if not zipfile.is_zipfile(path):
        return Kind("the beginning of an archive, such as torch.save writes", FETCH_AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        last_names = {Path(name).name for name in names}
        if "data.pkl" in last_names:
            _check_archive(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return Kind(f"a damaged archive: {first_line(error)}", FETCH_AGAIN)
    if "constants.pkl" in last_names:
        return Kind("a program of TorchScript", SAVE_STATE)
    if last_names & {"archive_format", "serialized_exported_program.json"}:
        return Kind("a program of torch.export", SAVE_STATE)
    if "data.pkl" in last_names:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return Kind("an archive of NumPy arrays")
    return Kind(f"an archive of other files: {abbreviated(names, MAX_NAMES_LISTED) or 'none'}", UNPACK)


def _kind_of_tar(path: Path) -> Kind | None:
    try:
        with tarfile.open(path, "r:") as archive:
            names = archive.getnames()
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return None
    if {"pickle", "storages", "tensors"} <= set(names):
        return Kind("the tar format of torch before version 0.2", SAVE_STATE)
    return Kind(f"a tar archive of other files: {abbreviated(names, MAX_NAMES_LISTED) or 'none'}", UNPACK)


def _kind_of_text(path: Path, head: bytes) -> Kind | None:
    start = head.decode("utf-8-sig", "replace").strip()
    if start.startswith("version https://git-lfs"):
        return Kind("a Git LFS pointer", "Fetch the file itself with git lfs pull.")
    if re.match(r"<(!doctype html|html|head|body|script|title|meta|!--)", start, re.IGNORECASE):
        return Kind("a web page", "Download the file itself.")
    if start.startswith("<"):
        return Kind("XML, such as the error of a server", "Download the file itself.")
    if not start or not all(char.isprintable() or char.isspace() for char in start.rstrip("\ufffd")):
        return None
    if start[0] in "{[" and path.stat().st_size <= MAX_JSON_BYTES:
        found = _parsed(path.read_text("utf-8-sig", "replace"))
        if isinstance(found, dict) and "weight_map" in found:
            return Kind("the index of weights in several shards", "Save all of them in one file.")
        if not isinstance(found, str):
            return Kind("a JSON document")
    return Kind(f"text that begins with {start.splitlines()[0][:80]!r}")


def _load_safetensors(path: Path) -> dict[Any, Any]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return {**{name: _parsed(text) for name, text in metadata.items()}, **load_file(path)}
    except (SafetensorError, OSError) as error:
        expected = "a complete safetensors file"
        raise UsageError(problem(f"weights {path}", expected=expected, got=first_line(error))) from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check_archive(path: Path) -> None:
    """Raise `ValueError` for a damaged archive, which torch would not notice, or one that expands when unpacked."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]  # torch looks them up regardless of case
        if len(names) > len(set(names)):
            raise ValueError("two entries with the same name")
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise ValueError("compressed entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries larger than the file")
        for entry in entries:
            if entry.CRC:  # torch.save can leave checksums out
                with archive.open(entry) as content:
                    while content.read(2**20):  # raises if the checksum is wrong
                        pass


def _load_pickle(path: Path) -> dict[Any, Any]:
    try:
        with (
            path.open("rb") as file,  # by its content: torch decides about a path by its suffix
            torch.serialization.safe_globals(SAFE_GLOBALS),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about old formats
            document = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"weights {path} contain code, which is not run"
            raise UsageError(
                problem(what, expected="tensors and plain data", got=code[1], remedy=SAVE_STATE)
            ) from error
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        expected, got = "a complete checkpoint of tensors and plain data", _without_advice(reason[1] if reason else "")
        raise UsageError(problem(f"weights {path}", expected=expected, got=got)) from error
    except Exception as error:  # incomplete files fail in many ways
        if is_out_of_memory(error):
            raise
        other = "Invalid magic number" in str(error)
        got = "a pickle that torch.save did not write" if other else "an incomplete or damaged one"
        remedy = SAVE_STATE if other else FETCH_AGAIN
        raise UsageError(
            problem(f"weights {path}", expected="a complete checkpoint", got=got, remedy=remedy)
        ) from error
    if not isinstance(document, dict):
        got = type(document).__name__
        raise UsageError(problem(f"weights {path}", expected="a dictionary", got=got, remedy=SAVE_STATE))
    return document


def _without_advice(reason: str) -> str | None:
    """Shorten a reason of torch's to its facts."""
    if reason.startswith("Unsupported operand"):
        return "a pickle protocol other than 2, which torch.save writes"
    if not _ADVICE.search(reason):
        return reason or None
    kind = re.search(r"but got <class '([^']+)'>", reason)
    return kind[1] if kind else "something else"
