"""Files of tensors and metadata: safetensors with a checksum over both.

Nothing in such a file can run code, its header cannot claim more than the file holds, and a file that was altered after
it was written is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcache.checked_files import parse_json, require_digest
from kdcache.errors import UsageError, first_line, problem
from kdcache.files import write_atomically

__all__ = ["digest", "is_tensor_file", "load", "read_metadata", "save", "to_storage"]

_ENTRY = "kdcache"
"""The only entry of the safetensors metadata, JSON. Several entries would be written in random order."""

_CHECKSUM = "sha256"


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and metadata to a file, atomically.

    Parameters
    ----------
    path : Path
        File to create or replace; its folder must exist.
    tensors : mapping of str to Tensor
        Stored bit for bit, regardless of memory layout and device.
    metadata : mapping
        JSON values; ``format`` names the type of the file.
    """
    state = {key: to_storage(tensor) for key, tensor in sorted(tensors.items())}
    entry = {_ENTRY: json.dumps({**metadata, _CHECKSUM: digest(state, metadata)})}
    write_atomically(path, lambda temporary: save_file(state, temporary, entry))


def read_metadata(path: Path, format: str) -> dict[str, Any]:
    """Read the metadata from the header of a file, without verifying the checksum.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or has another format.
    """
    if not path.is_file():
        raise UsageError(
            problem(f"checkpoint {path}", expected="a file", got="a folder" if path.is_dir() else "nothing")
        )
    try:
        path.open("rb").close()  # safetensors reports a file without read permission as missing
        with safe_open(path, "pt") as file:
            metadata = parse_json((file.metadata() or {}).get(_ENTRY, "{}"))
    except (SafetensorError, OSError) as error:
        raise UsageError(
            problem(f"checkpoint {path}", expected="a complete safetensors file", got=first_line(error))
        ) from error
    except ValueError as error:
        raise UsageError(problem(f"checkpoint {path}: metadata", expected="JSON", got=first_line(error))) from error
    if not isinstance(metadata, dict) or metadata.get("format") != format:
        given = metadata.get("format", "none") if isinstance(metadata, dict) else metadata
        raise UsageError(problem(f"checkpoint {path}: format in the metadata", expected=format, got=given))
    return metadata


def is_tensor_file(path: Path) -> bool:
    """Whether a file was written by `save`; ``False`` if it cannot be read."""
    if not path.is_file():  # opening a pipe would wait
        return False
    try:
        with safe_open(path, "pt") as file:
            return _ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load(path: Path, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a file.

    Raises
    ------
    UsageError
        If the file is missing, damaged, altered, or has another format.
    """
    metadata = read_metadata(path, format)
    stated = metadata.pop(_CHECKSUM, None)
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            problem(f"checkpoint {path}", expected="a complete safetensors file", got=first_line(error))
        ) from error
    state = dict(sorted(state.items()))
    what = f"checkpoint {path} is damaged or was altered: SHA-256 of its contents"
    require_digest(what, stated, digest(state, metadata))
    return state, metadata


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of metadata and tensors in their orders; memory layout and device do not matter."""
    sha = hashlib.sha256(json.dumps(metadata).encode())
    for key, tensor in tensors.items():
        sha.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(to_storage(tensor).reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def to_storage(tensor: Tensor) -> Tensor:
    """Bring a tensor into the layout of files: contiguous, on the CPU."""
    return tensor.detach().cpu().contiguous()
