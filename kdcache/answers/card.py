"""The card of a copied store: whose logits it holds, of which images and views, and a checksum of each file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from kdcache.answers.durable_store import MAX_VALUE_BYTES, ROOT_KEY
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, HEAD, IMAGES, ReplayTableName
from kdcache.cards import Rendering
from kdcache.checked_files import CHECKSUM, digest, parse_json, require_digest
from kdcache.choices import IMAGE_SIZES, INTERPOLATIONS
from kdcache.errors import KdcacheError, UsageError, first_line, problem

__all__ = ["CARD", "AnswerCard", "StoredFile", "describe_views", "read_card", "require_file"]

CARD = "card.json"
"""Name of the card, beside the files of the store."""


class StoredFile(BaseModel):
    """Size and SHA-256 of a file.

    Attributes
    ----------
    size : int
        In bytes.
    sha256 : str
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=0, le=MAX_VALUE_BYTES)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, content: bytes) -> StoredFile:
        """Describe the content of a file."""
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def matches(self, content: bytes | None) -> bool:
        """Whether this is the content of the file."""
        return content is not None and len(content) == self.size and StoredFile.of(content) == self


class AnswerCard(BaseModel):
    """What a copied store holds.

    Attributes
    ----------
    format : str
    network : str
        Name of the teacher's network.
    epoch : int
        Of the teacher's training, after which it gave these logits; 0 for one that was loaded.
    top1 : float
        Its accuracy on the test set, in percent.
    dataset : str
    image_size, shorter_side, interpolation
        How pictures become the teacher's images, see `kdcache.cards.Rendering`.
    views : list of str
        The views whose logits are complete.
    rows, size : int
        Number of views, and bytes of all files.
    license : str
        Of the logits.
    pushed : dict
        When, by which version of kdcache and by which command the store was copied.
    made_with : dict
        What the logits were computed with, as in the store.
    fingerprint : dict
        What they depend on, as in the store.
    files : dict of str to StoredFile
        Every file of the store, by key.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["kdcache-card-1"] = "kdcache-card-1"
    network: str
    epoch: Annotated[int, Field(ge=0)]
    top1: Annotated[FiniteFloat, Field(ge=0, le=100)]
    dataset: str
    image_size: Annotated[int, Field(ge=IMAGE_SIZES[0], le=IMAGE_SIZES[1])]
    shorter_side: Annotated[int, Field(ge=1, le=2 * IMAGE_SIZES[1])]
    interpolation: Annotated[str, Field(pattern=f"^({'|'.join(INTERPOLATIONS)})$")]
    views: list[str]
    rows: int
    size: int
    license: str
    pushed: dict[str, Any]
    made_with: dict[str, Any]
    fingerprint: dict[str, Any]
    files: dict[str, StoredFile]

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
        if ROOT_KEY not in files:
            raise ValueError(f"a file {ROOT_KEY}")
        if wrong := [key for key in files if not _is_key(key)]:
            raise ValueError(f"files of a store, not {wrong[0]}")
        return files

    @property
    def rendering(self) -> Rendering:
        """How pictures become the images of the teacher."""
        return Rendering(self.image_size, self.shorter_side, self.interpolation)

    @property
    def facts(self) -> dict[str, Any]:
        """All but the files."""
        return self.model_dump(mode="json", exclude={"files"})

    def to_json(self) -> bytes:
        """Write it as JSON with its checksum."""
        document = self.model_dump(mode="json")
        return (json.dumps({**document, CHECKSUM: digest(document)}, indent=2) + "\n").encode()


def _is_key(key: str) -> bool:
    """Whether a key may be that of a file in a store: nothing leads out of it."""
    parts = PurePosixPath(key).parts
    inside = "/".join(parts) == key and not any(part.startswith(".") or "\\" in part for part in parts)
    return inside and key.isprintable() and parts[0] in (ROOT_KEY, CLEAN, HEAD, IMAGES, "replay")


def read_card(place: StoreLocation | str, named_by: str = "--answers") -> AnswerCard:
    """Read the card of a store.

    Parameters
    ----------
    place : StoreLocation or str
    named_by : str
        What names the place, for messages.

    Raises
    ------
    UsageError
        If there is none, or it is damaged.
    KdcacheError
        If a service does not respond.
    """
    place = StoreLocation(place, named_by=named_by) if isinstance(place, str) else place
    what = f"answers {place.where}"
    content = place.read(CARD)
    if content is None:
        remedy = "If 'kdcache cache push' was interrupted there, run it again."
        raise UsageError(problem(what, expected=f"a folder or URL with a {CARD}", got="none", remedy=remedy))
    try:
        document = parse_json(content)
        if not isinstance(document, dict):
            raise ValueError("no object")
        stated = document.pop(CHECKSUM, None)
        require_digest(f"{what}: SHA-256 of {CARD}", stated, digest(document), "It is damaged or was altered.")
        return AnswerCard.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(problem(f"{what}: {where} in {CARD}", expected=first["msg"], got=first["input"])) from None
    except ValueError as error:
        raise UsageError(problem(f"{what}: {CARD}", expected="JSON", got=first_line(error))) from None


def require_file(place: str, key: str, content: bytes | None, file: StoredFile) -> bytes:
    """Raise a `KdcacheError` unless a file has the content that the card states."""
    if content is None or not file.matches(content):
        got = "nothing" if content is None else f"{len(content)} bytes, {StoredFile.of(content).sha256}"
        what, expected = f"{key} in {place} is damaged", f"{file.size} bytes, {file.sha256}"
        raise KdcacheError(problem(what, expected=expected, got=got, remedy="Copy it anew from its source."))
    return content


def describe_views(tables: Iterable[str]) -> list[str]:
    """Describe the views of some tables of logits, a line for each view seed and range of epochs."""
    paths = sorted(tables)
    epochs: dict[tuple[int, str], list[int]] = defaultdict(list)
    for name in filter(None, map(ReplayTableName.parse, paths)):
        epochs[name.seed, name.kind].append(name.epoch + 1)
    kinds: dict[tuple[int, str], list[str]] = defaultdict(list)
    for (seed, kind), numbers in epochs.items():
        kinds[seed, _ranges(numbers)].append(kind)
    lines = [
        f"epoch{'' if numbers.isdigit() else 's'} {numbers} of view seed {seed}: {', '.join(names)}"
        for (seed, numbers), names in kinds.items()
    ]
    return [*(["clean views"] if CLEAN in paths else []), *lines]


def _ranges(numbers: Sequence[int]) -> str:
    """Write increasing numbers as in ``1-3, 7``."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(
        f"{first}" if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)
    )
