"""What the logits in a store depend on, and the refusal to use them for anything else."""

import hashlib
import json
from collections.abc import Mapping

from kdcache.errors import UsageError, problem

__all__ = ["digest", "require_same_fingerprint"]


def digest(facts: Mapping[str, object]) -> str:
    """SHA-256 of the facts as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_same_fingerprint(where: object, stored: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Refuse a store whose logits depend on something else.

    Parameters
    ----------
    where : object
        The store, for the message.
    stored, expected : mapping
        Fingerprint of the store, and of the logits that are needed.

    Raises
    ------
    UsageError
        With one line for each field that differs, naming both values.
    """
    differing = [name for name in expected.keys() | stored.keys() if stored.get(name) != expected.get(name)]
    if differing:
        raise UsageError(
            *(
                problem(
                    f"store {where}: {name}",
                    expected=expected.get(name),
                    got=stored.get(name),
                    remedy="Name another store with --store.",
                )
                for name in sorted(differing)
            )
        )
