"""What made the answers in a store, and the refusal to use them for anything else."""

import hashlib
import json
from collections.abc import Mapping

from kdcache.errors import UsageError, problem

__all__ = ["compare", "digest"]


def digest(facts: Mapping[str, object]) -> str:
    """SHA-256 of facts as JSON holds them, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def compare(where: object, stored: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Refuse a store that was made from something else.

    Parameters
    ----------
    where : object
        The store, for the message.
    stored, expected : mapping
        Fingerprints: what made the answers, and what would make them now.

    Raises
    ------
    UsageError
        With a line for each field that differs, naming both values.
    """
    differing = [name for name in expected.keys() | stored.keys() if stored.get(name) != expected.get(name)]
    if differing:
        raise UsageError(
            *(
                problem(
                    f"{where} holds answers of another {name} (another --store may hold these)",
                    expected=expected.get(name),
                    got=stored.get(name),
                )
                for name in sorted(differing)
            )
        )
