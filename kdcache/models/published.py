"""Published checkpoints of other projects, in the usual layouts. No code in them is run."""

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcache.errors import KdcacheError, UsageError, abbreviated, first_line, problem
from kdcache.models.network import Network
from kdcache.models.registry import REGISTRY

__all__ = ["KNOWN_ACCURACY", "Published", "download_torchvision", "load_into", "most_similar_network", "read"]

KNOWN_ACCURACY = {
    ("cifar100", "wrn_40_2"): 75.61,
    ("cifar100", "resnet56"): 72.34,
    ("cifar100", "resnet110"): 74.31,
    ("cifar100", "resnet32x4"): 79.42,
    ("cifar100", "vgg13"): 74.64,
    ("cifar100", "ResNet50"): 79.34,
}
"""Top-1 accuracy in % of the teachers published with Tian et al., "Contrastive Representation Distillation" (2020)."""

_HOLDERS = ("model", "state_dict", "model_state_dict", "net")
"""Keys under which a file may keep its tensors."""

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the names of tensors."""

MAX_TENSORS_LISTED = 10

MIN_SIMILARITY = 0.8
"""Fraction of tensors that a file and a network must have in common for `most_similar_network` to name the network."""

# Plain data in published files besides the tensors: the options of the training command, and NumPy scalars, whose
# module was renamed in NumPy 2.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


class Published(NamedTuple):
    """The content of a published checkpoint.

    Attributes
    ----------
    state : dict of str to Tensor
        Names have no prefixes of wrappers.
    accuracy : float or None
        Top-1 accuracy in percent, if the file states it.
    mean, std : tuple of float or None
        Normalization, if the weights state it.
    """

    state: dict[str, Tensor]
    accuracy: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read(path: Path) -> Published:
    """Read a checkpoint in the format of safetensors or ``torch.save``.

    Parameters
    ----------
    path : Path
        A plain state dict, or one under ``model``, ``state_dict``, ``model_state_dict`` or ``net``, as RepDistiller,
        mdistiller and others write them.

    Raises
    ------
    UsageError
        If the file is missing, damaged, has no tensors, or contains code.
    """
    if not path.is_file():
        raise UsageError(problem(f"weights {path}", expected="a file", got="a folder" if path.is_dir() else "nothing"))
    document: dict[Any, Any] = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    holder = next((document[name] for name in _HOLDERS if isinstance(document.get(name), dict)), document)
    state = {
        _without_prefixes(name): value
        for name, value in holder.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not state:
        names = ", ".join(name for name in document if isinstance(name, str))
        raise UsageError(problem(f"weights {path}", expected="tensors by name", got=names[:80] or "none"))
    if odd := sorted(name for name, value in state.items() if not _is_plain(value)):
        raise UsageError(
            problem(
                f"weights {path}: tensors", expected="dense, of real numbers", got=abbreviated(odd, MAX_TENSORS_LISTED)
            )
        )
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    if (stated := sum(held.values())) > path.stat().st_size:
        raise UsageError(problem(f"weights {path}: bytes of tensors", expected=path.stat().st_size, got=stated))
    return Published(state, accuracy=_number(document.get("accuracy")))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, and on the CPU, as the state of a network is."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return dense and tensor.device.type == "cpu" and not tensor.is_complex()


def download_torchvision(model: str, weights: str) -> Published:
    """Download weights of torchvision.

    Parameters
    ----------
    model : str
        ``torchvision:NAME``.
    weights : str
        Their name in torchvision, such as ``IMAGENET1K_V1`` or ``DEFAULT``.

    Raises
    ------
    UsageError
        If there are no such weights.
    KdcacheError
        If the download fails.
    """
    from torchvision.models import get_model_weights

    try:
        known = get_model_weights(model.removeprefix("torchvision:"))
        chosen = known[weights]
    except (KeyError, ValueError) as error:
        expected = "a file, or the name of weights in torchvision"
        raise UsageError(problem(f"weights of {model}", expected=expected, got=weights)) from error
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # the network is down, or the disk is full
        raise KdcacheError(problem(f"could not download {chosen.url}", got=first_line(error))) from error
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
            problem(f"weights {path}", expected="a complete safetensors file", got=first_line(error))
        ) from error


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
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message ends with advice to run the code; only the reason is passed on.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"weights {path} contain code, which is not run"
            raise UsageError(problem(what, expected="tensors and plain data", got=code[1])) from error
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        expected = "a complete checkpoint of tensors and plain data"
        raise UsageError(problem(f"weights {path}", expected=expected, got=reason[1] if reason else None)) from error
    except Exception as error:  # truncated and empty files fail in many ways
        raise UsageError(problem(f"weights {path}", expected="a complete checkpoint", got=first_line(error))) from error
    if not isinstance(document, dict):
        raise UsageError(problem(f"weights {path}", expected="a dictionary", got=type(document).__name__))
    return document


def _without_prefixes(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def load_into(network: Network, state: dict[str, Tensor], where: object) -> None:
    """Load tensors into a network.

    Raises
    ------
    UsageError
        If names or shapes differ. The message names the network that the tensors would fit.
    """
    expected = network.body.state_dict()

    def differs(key: str) -> bool:
        floats = [tensor.is_floating_point() for tensor in (expected[key], state[key])]
        return expected[key].shape != state[key].shape or floats[0] != floats[1]

    wrong = {
        "missing": expected.keys() - state.keys(),
        "unknown": state.keys() - expected.keys(),
        "of another shape or type": {key for key in expected.keys() & state.keys() if differs(key)},
    }
    if any(wrong.values()):
        fitting = most_similar_network(state)
        remedy = f"The tensors fit {fitting}." if fitting not in (None, network.name) else None
        raise UsageError(
            *(
                problem(
                    f"weights {where}: tensors {what}",
                    expected=f"those of {network.name}",
                    got=abbreviated(names, MAX_TENSORS_LISTED),
                    remedy=remedy,
                )
                for what, names in wrong.items()
                if names
            )
        )
    network.body.load_state_dict(state)


def most_similar_network(state: dict[str, Tensor]) -> str | None:
    """Name the network of kdcache whose tensors are most similar, for any number of classes; ``None`` if none is."""
    shapes = {(name, tuple(tensor.shape)) for name, tensor in state.items()}
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    classes = len(matrices[-1]) if matrices else 1
    similarity = {name: _similarity(shapes, name, classes) for name in REGISTRY}
    best = max(similarity, key=lambda name: similarity[name])
    return best if similarity[best] > MIN_SIMILARITY else None


def _similarity(shapes: set[tuple[str, tuple[int, ...]]], name: str, classes: int) -> float:
    with torch.device("meta"):
        body: nn.Module = REGISTRY[name](classes)
    own = {(key, tuple(tensor.shape)) for key, tensor in body.state_dict().items()}
    return len(own & shapes) / len(own | shapes)
