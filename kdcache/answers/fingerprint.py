"""What the logits in a store depend on, and the refusal to use them for anything else."""

import hashlib
import json
from collections.abc import Mapping

from kdcache.errors import UsageError, problem

__all__ = ["clean_facts", "digest", "require_same_fingerprint"]

SET_OF_IMAGES = frozenset(("dataset", "samples", "padding", "plan version"))
"""Facts on which the logits of a clean view do not depend, since it is the same in every set of images."""


def digest(facts: Mapping[str, object]) -> str:
    """SHA-256 of the facts as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def clean_facts(fingerprint: Mapping[str, object]) -> dict[str, object]:
    """Select the facts on which the logits of clean views depend, besides the content of each image."""
    return {name: value for name, value in fingerprint.items() if name not in SET_OF_IMAGES}


def require_same_fingerprint(
    where: object,
    stored: Mapping[str, object],
    expected: Mapping[str, object],
    stored_settings: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    remedy: str = "Name another store with --store.",
) -> None:
    """Refuse a store whose logits depend on something else.

    Parameters
    ----------
    where : object
        The store, for the message.
    stored, expected : mapping
        Fingerprint of the store, and of the logits that are needed.
    stored_settings, settings : mapping, optional
        The settings that say which images the store has, and which are needed. They need not agree, but those that
        differ explain what does.
    remedy : str

    Raises
    ------
    UsageError
        With one line for each field that differs, naming both values.
    """
    differing = [name for name in expected.keys() | stored.keys() if stored.get(name) != expected.get(name)]
    if not differing:
        return
    before, now = stored_settings or {}, settings or {}
    remedies = {"dtype": f"Choose it with --store-format, --store-dtype and --topk. {remedy}"}
    lines = [
        problem(
            f"store {where}: {name}",
            expected=expected.get(name),
            got=stored.get(name),
            remedy=remedies.get(name, remedy),
        )
        for name in sorted(differing)
    ]
    lines += [
        problem(f"store {where}: --{name.replace('_', '-')}", expected=now[name], got=before[name])
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]
    raise UsageError(*lines)
