"""Networks in files: tensors and what is needed to build the network again, in one safetensors file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcache.errors import UsageError, fault
from kdcache.files import write_whole
from kdcache.models import Network, build

__all__ = ["FORMAT", "fingerprint", "is_ours", "load", "metadata", "save"]

FORMAT = "kdcache-network-2"
"""Name and version of the format, under ``format`` in the file's metadata."""

_ENTRY = "kdcache"
"""The one entry of the metadata, JSON: safetensors writes several in any order, and equal networks are equal files."""

_SHOWN = 3


def save(network: Network, path: Path, **metadata: object) -> None:
    """Write the network to `path`, whole or not at all.

    Parameters
    ----------
    network : Network
        Its body's tensors are stored bit for bit, without memory layout or device.
    path : Path
        The file to make or replace; its folder must exist.
    **metadata
        Further facts to store, as JSON can hold them; they may not take the names of the network's own.
    """
    own = {"format": FORMAT, **_description(network), "feature_names": network.feature_names}
    if taken := own.keys() & metadata.keys():
        raise ValueError(f"metadata names already in use: {sorted(taken)}")
    state = {key: _plain(tensor) for key, tensor in network.body.state_dict().items()}
    entry = {_ENTRY: json.dumps({**own, **metadata})}
    write_whole(path, lambda temporary: save_file(state, temporary, entry))


def metadata(path: Path) -> dict[str, Any]:
    """The facts stored beside the tensors, read from the file's header alone.

    Raises
    ------
    UsageError
        If `path` is missing, damaged, or no checkpoint of this project.
    """
    if not path.is_file():
        raise UsageError(
            fault(f"checkpoint {path}", allowed="a file", given="a folder" if path.is_dir() else "nothing")
        )
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
    except (SafetensorError, OSError) as error:
        raise UsageError(fault(f"checkpoint {path}", allowed="a whole safetensors file", given=error)) from error
    except ValueError as error:
        raise UsageError(fault(f"checkpoint {path}: its metadata are no JSON", given=error)) from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        given = stored.get("format", "none") if isinstance(stored, dict) else stored
        raise UsageError(fault(f"checkpoint {path}: format in the metadata", allowed=FORMAT, given=given))
    return stored


def is_ours(path: Path) -> bool:
    """Tell whether a safetensors file was written by kdcache; one that cannot be read was not."""
    try:
        with safe_open(path, "pt") as file:
            return _ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load(path: Path) -> Network:
    """Build the network stored in `path`, on the CPU and in training mode, torch's global generators untouched.

    Raises
    ------
    UsageError
        If `path` is missing, damaged, no checkpoint of this project, or its tensors do not fit the network it names.
    """
    stored = metadata(path)
    try:
        fields = {key: stored[key] for key in ("name", "num_classes", "image_size", "mean", "std")}
        network = build(**fields, seed=0, feature_names=tuple(stored.get("feature_names", ())))
    except UsageError as error:
        raise UsageError(*(f"checkpoint {path}: {line}" for line in error.faults)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(fault(f"checkpoint {path}: its metadata describe no network", given=repr(error))) from error
    state, expected = load_file(path), network.body.state_dict()
    kinds = [{key: (tensor.dtype, tensor.shape) for key, tensor in side.items()} for side in (state, expected)]
    if wrong := sorted({key for key, _ in kinds[0].items() ^ kinds[1].items()}):
        some = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise UsageError(fault(f"checkpoint {path}: tensors missing, unknown or of another shape or type", given=some))
    network.body.load_state_dict(state)
    return network


def fingerprint(network: Network) -> str:
    """SHA-256, in hexadecimal, of everything that decides the network's answers.

    That is its description and its tensors in the order of ``state_dict()``; memory layout and device do not count.
    """
    digest = hashlib.sha256(json.dumps(_description(network)).encode())
    for key, tensor in network.body.state_dict().items():
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_plain(tensor).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _description(network: Network) -> dict[str, object]:
    return {key: getattr(network, key) for key in ("name", "num_classes", "image_size", "mean", "std")}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
