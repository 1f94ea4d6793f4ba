"""Checkpoints of networks: one safetensors file with the tensors and what is needed to build the network again."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from kdcache import tensor_files
from kdcache.cards import Rendering
from kdcache.choices import IMAGE_SIZES, INTERPOLATIONS
from kdcache.errors import UsageError, abbreviated, problem
from kdcache.models.base import load_state
from kdcache.models.network import Network
from kdcache.models.registry import build, expected_state

__all__ = [
    "FORMAT",
    "Description",
    "describe",
    "fingerprint",
    "is_kdcache_file",
    "load",
    "metadata",
    "read",
    "rendering_of",
    "save",
]

FORMAT = "kdcache-network-3"
"""Name and version of the format, under ``format`` in the file's metadata."""

MAX_TENSORS_LISTED = 3


class Description(BaseModel):
    """What a file says about its network. Only types are checked here; `build` checks the values."""

    model_config = ConfigDict(strict=True)

    name: str
    num_classes: int
    image_size: int
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    shorter_side: Annotated[int, Field(ge=1, le=2 * IMAGE_SIZES[1])] | None = None
    interpolation: Annotated[str, Field(pattern=f"^({'|'.join(INTERPOLATIONS)})$")] = "bilinear"

    @property
    def rendering(self) -> Rendering:
        """How pictures become the images of the network."""
        return Rendering(self.image_size, self.shorter_side or self.image_size, self.interpolation)


def save(network: Network, path: Path, **metadata: object) -> None:
    """Write a network to a file, atomically.

    Parameters
    ----------
    network : Network
        The tensors of its body are stored bit for bit, regardless of memory layout and device.
    path : Path
        File to create or replace; its folder must exist.
    **metadata
        Further JSON values to store, under names that the network's own metadata do not use.
    """
    own = {"format": FORMAT, **_description(network), **asdict(network.rendering)}
    own["feature_names"] = network.feature_names
    if taken := own.keys() & metadata.keys():
        raise ValueError(f"metadata names already in use: {sorted(taken)}")
    tensor_files.save(path, network.body.state_dict(), {**own, **metadata})


def metadata(path: Path) -> dict[str, Any]:
    """Read the metadata from the header of a file.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or not a checkpoint of kdcache.
    """
    return tensor_files.read_metadata(path, FORMAT)


def is_kdcache_file(path: Path) -> bool:
    """Whether a file is a safetensors file that kdcache wrote."""
    return tensor_files.is_tensor_file(path)


def read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Read the tensors of a network, and what the file says about it; their values are not compared with each other.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or not a checkpoint of kdcache.
    """
    state, facts = tensor_files.load(path, FORMAT)
    return state, describe(path, facts)


def rendering_of(path: Path) -> Rendering:
    """Read from the header of a file how pictures become the images of its network.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or not a checkpoint of kdcache.
    """
    return describe(path, metadata(path)).rendering


def describe(path: Path, facts: Mapping[str, Any]) -> Description:
    """Check the metadata of a file.

    Raises
    ------
    UsageError
        If one is missing or has another type, or there are more or fewer names than classes.
    """
    try:
        stated = Description.model_validate_json(json.dumps(facts))
    except ValidationError as error:
        first = error.errors()[0]
        what = f"checkpoint {path}: {'.'.join(map(str, first['loc']))} in the metadata"
        raise UsageError(problem(what, expected=first["msg"], got=first["input"])) from error
    if len(stated.class_names) not in (0, stated.num_classes):
        what = f"checkpoint {path}: number of class names"
        raise UsageError(problem(what, expected=stated.num_classes, got=len(stated.class_names)))
    return stated


def load(path: str | Path) -> Network:
    """Load a network, on the CPU and in training mode. torch's global generators are not changed.

    Raises
    ------
    UsageError
        If the file is missing, damaged, not a checkpoint of kdcache, or its tensors do not fit the network it names.
    """
    path = Path(path)
    state, stated = read(path)
    try:
        # Before memory is allocated for the network, check that the file holds as many tensors as it claims.
        expected = expected_state(stated.name, stated.num_classes, stated.image_size)
        if expected is not None:
            _check_state(path, state, expected)
        network = build(**stated.model_dump(exclude={"class_names", "shorter_side", "interpolation"}), seed=0)
        network.rendering = stated.rendering
    except UsageError as error:
        raise UsageError(*(_with_path(path, line) for line in error.problems)) from error
    _check_state(path, state, network.body.state_dict())
    load_state(network.body, state)
    return network


def _with_path(path: Path, line: str) -> str:
    return line if line.startswith(f"checkpoint {path}") else f"checkpoint {path}: {line}"


def _check_state(path: Path, state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `UsageError` unless the tensors have the names, dtypes and shapes of the network's."""
    given, wanted = ({key: (tensor.dtype, tensor.shape) for key, tensor in side.items()} for side in (state, expected))
    if wrong := {key for key, _ in given.items() ^ wanted.items()}:
        what = f"checkpoint {path}: tensors missing, unknown, or of another shape or dtype"
        raise UsageError(problem(what, got=abbreviated(wrong, MAX_TENSORS_LISTED)))


def fingerprint(network: Network) -> str:
    """SHA-256, in hexadecimal, of everything that determines the logits of a network.

    These are its name, sizes and normalization, and its tensors in the order of ``state_dict()``; memory layout and
    device do not matter.
    """
    return tensor_files.digest(network.body.state_dict(), _description(network))


def _description(network: Network) -> dict[str, object]:
    return {key: getattr(network, key) for key in ("name", "num_classes", "image_size", "mean", "std")}
