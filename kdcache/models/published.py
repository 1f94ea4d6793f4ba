"""Checkpoints that others published, in whichever of the usual layouts; nothing in them is run."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.models import REGISTRY, Network

__all__ = ["KNOWN_ACCURACY", "Published", "closest", "download_torchvision", "load_into", "read"]

KNOWN_ACCURACY = {
    ("cifar100", "wrn_40_2"): 75.61,
    ("cifar100", "resnet56"): 72.34,
    ("cifar100", "resnet110"): 74.31,
    ("cifar100", "resnet32x4"): 79.42,
    ("cifar100", "vgg13"): 74.64,
    ("cifar100", "ResNet50"): 79.34,
}
"""Top-1 accuracy of the teachers that Tian et al., "Contrastive Representation Distillation" (2020), published."""

_HOLDERS = ("model", "state_dict", "model_state_dict", "net")
"""Where a file keeps its tensors, if not at the top."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the name of a tensor."""

_SHOWN = 10

# Plain data that published files hold beside their tensors: options of the command, and NumPy's numbers, which went
# by another name before NumPy 2.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


class Published(NamedTuple):
    """What a published file holds.

    Attributes
    ----------
    state : dict of str to Tensor
        Without the prefixes of wrappers.
    accuracy : float or None
        What the file says its top-1 accuracy is, in percent.
    mean, std : tuple of float or None
        What the weights say about their normalisation.
    """

    state: dict[str, Tensor]
    accuracy: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read(path: Path) -> Published:
    """Read a checkpoint: safetensors, or what ``torch.save`` wrote.

    Parameters
    ----------
    path : Path
        A plain state dict, or one under ``model``, ``state_dict``, ``model_state_dict`` or ``net``, as RepDistiller,
        mdistiller and others write them.

    Raises
    ------
    UsageError
        If the file is missing, damaged, holds no tensors, or wants to run code, which is refused.
    """
    if not path.is_file():
        raise UsageError(problem(f"weights {path}", expected="a file", got="a folder" if path.is_dir() else "nothing"))
    document: dict[Any, Any] = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    holder = next((document[name] for name in _HOLDERS if isinstance(document.get(name), dict)), document)
    state = {
        _bare(name): value for name, value in holder.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not state:
        names = ", ".join(name for name in document if isinstance(name, str))
        raise UsageError(problem(f"weights {path}", expected="tensors by name", got=names[:80] or "none"))
    if odd := sorted(name for name, value in state.items() if not _is_plain(value)):
        raise UsageError(problem(f"weights {path}: tensors", expected="dense, of real numbers", got=_listed(odd)))
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    if (stated := sum(held.values())) > path.stat().st_size:
        raise UsageError(problem(f"weights {path}: bytes of tensors", expected=path.stat().st_size, got=stated))
    return Published(state, accuracy=_number(document.get("accuracy")))


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is what a network holds: not sparse, quantised, complex, or without content."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return dense and tensor.device.type == "cpu" and not tensor.is_complex()


def download_torchvision(model: str, weights: str) -> Published:
    """Fetch weights of torchvision's.

    Parameters
    ----------
    model : str
        ``torchvision:NAME``.
    weights : str
        As torchvision calls them: ``IMAGENET1K_V1``, ``DEFAULT``.

    Raises
    ------
    UsageError
        If there are no such weights.
    KdcacheError
        If they cannot be fetched.
    """
    from torchvision.models import get_model_weights

    try:
        known = get_model_weights(model.removeprefix("torchvision:"))
        chosen = known[weights]
    except (KeyError, ValueError) as error:
        allowed = "a file, or weights of torchvision's network"
        raise UsageError(problem(f"weights of {model}", expected=allowed, got=weights)) from error
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # the network is down, or the disk is full
        raise KdcacheError(problem(f"cannot fetch {chosen.url}", got=first_line(error))) from error
    transforms = chosen.transforms()
    metrics: dict[str, dict[str, float]] = chosen.meta.get("_metrics", {})
    accuracy = metrics.get("ImageNet-1K", {}).get("acc@1")
    return Published(dict(state), accuracy, tuple(transforms.mean), tuple(transforms.std))


def _number(value: object) -> float | None:
    if isinstance(value, Tensor):
        value = value.item() if _is_plain(value) and value.numel() == 1 else None
    if not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if 0 <= value <= 100 else None


def _load_safetensors(path: Path) -> dict[Any, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UsageError(
            problem(f"weights {path}", expected="a whole safetensors file", got=first_line(error))
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse a damaged archive, which torch would read without looking, and one that unpacks to more than it is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]  # torch finds them whatever their case
        if len(names) > len(set(names)):
            raise ValueError("two entries of one name")
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise ValueError("compressed entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries larger than the file")
        for entry in entries:
            if entry.CRC:  # torch.save can be told to leave the checksums out
                with archive.open(entry) as content:
                    while content.read(2**20):  # which fails at another checksum
                        pass


def _load_pickle(path: Path) -> dict[Any, Any]:
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of a format
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What torch says ends in advice to let the code run; only its reason is passed on.
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"weights {path} want to run code and are refused"
            raise UsageError(problem(what, expected="tensors and plain data", got=wanted[1])) from error
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        allowed = "a whole checkpoint that can be read without running code"
        raise UsageError(problem(f"weights {path}", expected=allowed, got=reason[1] if reason else None)) from error
    except Exception as error:  # truncated and empty files fail in many ways
        raise UsageError(problem(f"weights {path}", expected="a whole checkpoint", got=first_line(error))) from error
    if not isinstance(document, dict):
        raise UsageError(problem(f"weights {path}", expected="a dictionary", got=type(document).__name__))
    return document


def _bare(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def load_into(network: Network, state: dict[str, Tensor], where: object) -> None:
    """Put tensors into a network.

    Raises
    ------
    UsageError
        If names or shapes differ: ten of each are listed, and the network that they would fit is named.
    """
    expected = network.body.state_dict()

    def differs(key: str) -> bool:
        floats = [tensor.is_floating_point() for tensor in (expected[key], state[key])]
        return expected[key].shape != state[key].shape or floats[0] != floats[1]

    wrong = {
        "missing": expected.keys() - state.keys(),
        "left over": state.keys() - expected.keys(),
        "of another shape or kind": {key for key in expected.keys() & state.keys() if differs(key)},
    }
    if any(wrong.values()):
        fitting = closest(state)
        remedy = f"{network.name}'s" + (
            f" (these shapes are {fitting}'s)" if fitting and fitting != network.name else ""
        )
        raise UsageError(
            *(
                problem(f"weights {where}: tensors {what}", expected=remedy, got=_listed(names))
                for what, names in wrong.items()
                if names
            )
        )
    network.body.load_state_dict(state)


def closest(state: dict[str, Tensor]) -> str | None:
    """Name the network whose tensors are most like these, whatever the number of classes; ``None`` if none is."""
    shapes = {(name, tuple(tensor.shape)) for name, tensor in state.items()}
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    classes = len(matrices[-1]) if matrices else 1
    likeness = {name: _likeness(shapes, name, classes) for name in REGISTRY}
    best = max(likeness, key=lambda name: likeness[name])
    return best if likeness[best] > 0.8 else None


def _likeness(shapes: set[tuple[str, tuple[int, ...]]], name: str, classes: int) -> float:
    with torch.device("meta"):
        body: nn.Module = REGISTRY[name](classes)
    own = {(key, tuple(tensor.shape)) for key, tensor in body.state_dict().items()}
    return len(own & shapes) / len(own | shapes)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
