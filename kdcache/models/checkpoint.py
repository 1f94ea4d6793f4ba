"""Networks in files: tensors and what is needed to build the network again, in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from kdcache import tensor_files
from kdcache.choices import IMAGE_SIZES
from kdcache.errors import UsageError, problem
from kdcache.models import Network, build, tensors_of

__all__ = ["FORMAT", "fingerprint", "is_kdcache_file", "load", "metadata", "save"]

FORMAT = "kdcache-network-3"
"""Name and version of the format, under ``format`` in the file's metadata."""

_SHOWN = 3


class _Description(BaseModel):
    """What a file says of its network, as nothing but the types that were written; `build` checks the values."""

    model_config = ConfigDict(strict=True)

    name: str
    num_classes: int
    image_size: int
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    shorter_side: Annotated[int, Field(ge=1, le=2 * IMAGE_SIZES[1])] | None = None


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
    tensor_files.save(path, network.body.state_dict(), {**own, **metadata})


def metadata(path: Path) -> dict[str, Any]:
    """The facts stored beside the tensors, read from the file's header alone.

    Raises
    ------
    UsageError
        If `path` is missing, damaged, or no checkpoint of this project.
    """
    return tensor_files.facts_of(path, FORMAT)


def is_kdcache_file(path: Path) -> bool:
    """Tell whether a safetensors file was written by kdcache; one that cannot be read was not."""
    return tensor_files.holds_facts(path)


def load(path: Path) -> Network:
    """Build the network stored in `path`, on the CPU and in training mode, torch's global generators untouched.

    Raises
    ------
    UsageError
        If `path` is missing, damaged, no checkpoint of this project, or its tensors do not fit the network it names.
    """
    state, facts = tensor_files.load(path, FORMAT)
    try:
        stated = _Description.model_validate_json(json.dumps(facts))
    except ValidationError as error:
        first = error.errors()[0]
        given = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UsageError(problem(f"checkpoint {path}: its metadata describe no network", got=given)) from error
    if len(stated.class_names) not in (0, stated.num_classes):
        what = f"checkpoint {path}: names of classes"
        raise UsageError(problem(what, expected=stated.num_classes, got=len(stated.class_names)))
    try:
        # The file must hold as much as it says before memory is taken for it.
        outline = tensors_of(stated.name, stated.num_classes, stated.image_size)
        if outline is not None:
            _compare(path, state, outline)
        network = build(**stated.model_dump(exclude={"class_names", "shorter_side"}), seed=0)
    except UsageError as error:
        raise UsageError(*(_placed(path, line) for line in error.problems)) from error
    _compare(path, state, network.body.state_dict())
    network.body.load_state_dict(state)
    return network


def _placed(path: Path, line: str) -> str:
    return line if line.startswith(f"checkpoint {path}") else f"checkpoint {path}: {line}"


def _compare(path: Path, state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a network, by name, type and shape."""
    kinds = [{key: (tensor.dtype, tensor.shape) for key, tensor in side.items()} for side in (state, expected)]
    if wrong := sorted({key for key, _ in kinds[0].items() ^ kinds[1].items()}):
        some = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise UsageError(problem(f"checkpoint {path}: tensors missing, unknown or of another shape or type", got=some))


def fingerprint(network: Network) -> str:
    """SHA-256, in hexadecimal, of everything that decides the network's answers.

    That is its description and its tensors in the order of ``state_dict()``; memory layout and device do not count.
    """
    return tensor_files.digest(network.body.state_dict(), _description(network))


def _description(network: Network) -> dict[str, object]:
    return {key: getattr(network, key) for key in ("name", "num_classes", "image_size", "mean", "std")}
