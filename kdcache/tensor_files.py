"""Tensors and facts in one safetensors file, with a checksum over both.

Nothing in such a file can run code, its header cannot claim more than the file holds, and a file whose bytes are not
those that were written is refused.
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

from kdcache.errors import UsageError, first_line, problem
from kdcache.files import write_atomically

__all__ = ["digest", "facts_of", "holds_facts", "load", "plain", "save"]

_ENTRY = "kdcache"
"""The one entry of the metadata, JSON: safetensors writes several in any order, and equal contents are equal files."""

_CHECKSUM = "sha256"


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write tensors and facts, whole or not at all.

    Parameters
    ----------
    path : Path
        The file to make or replace; its folder must exist.
    tensors : mapping of str to Tensor
        Stored bit for bit, without memory layout or device.
    facts : mapping
        As JSON can hold them; ``format`` names what kind of file this is.
    """
    state = {key: plain(tensor) for key, tensor in sorted(tensors.items())}
    entry = {_ENTRY: json.dumps({**facts, _CHECKSUM: digest(state, facts)})}
    write_atomically(path, lambda temporary: save_file(state, temporary, entry))


def facts_of(path: Path, format: str) -> dict[str, Any]:
    """Read the facts from a file's header alone, without its checksum being looked at.

    Raises
    ------
    UsageError
        If `path` is missing, damaged, or no file of this format.
    """
    if not path.is_file():
        raise UsageError(
            problem(f"checkpoint {path}", expected="a file", got="a folder" if path.is_dir() else "nothing")
        )
    try:
        path.open("rb").close()  # for safetensors, what may not be read is not there
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
    except (SafetensorError, OSError) as error:
        raise UsageError(
            problem(f"checkpoint {path}", expected="a whole safetensors file", got=first_line(error))
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(problem(f"checkpoint {path}: its metadata are no JSON", got=first_line(error))) from error
    if not isinstance(stored, dict) or stored.get("format") != format:
        given = stored.get("format", "none") if isinstance(stored, dict) else stored
        raise UsageError(problem(f"checkpoint {path}: format in the metadata", expected=format, got=given))
    return stored


def holds_facts(path: Path) -> bool:
    """Tell whether a safetensors file was written by `save`; one that cannot be read was not."""
    try:
        with safe_open(path, "pt") as file:
            return _ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load(path: Path, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts.

    Raises
    ------
    UsageError
        If `path` is missing, damaged, or no file of this format; damaged is also one whose checksum is another.
    """
    facts = facts_of(path, format)
    stated = facts.pop(_CHECKSUM, None)
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            problem(f"checkpoint {path}", expected="a whole safetensors file", got=first_line(error))
        ) from error
    state = dict(sorted(state.items()))
    found = digest(state, facts)
    if stated != found:
        what = f"checkpoint {path} is damaged or was altered: SHA-256 of its contents"
        raise UsageError(problem(what, expected=stated, got=found))
    return state, facts


def digest(tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of facts and tensors in their orders; memory layout and device do not count."""
    sha = hashlib.sha256(json.dumps(facts).encode())
    for key, tensor in tensors.items():
        sha.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(plain(tensor).reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def plain(tensor: Tensor) -> Tensor:
    """Give a tensor as files hold it: on the CPU, row after row."""
    return tensor.detach().cpu().contiguous()
