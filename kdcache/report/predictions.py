"""Predictions as lines of text, CSV or JSON."""

import csv
import json
from collections.abc import Callable, Sequence
from io import StringIO
from typing import NamedTuple

from kdcache.errors import printable

__all__ = ["PREDICTION_FORMATS", "Guess", "PredictionFormat"]


class Guess(NamedTuple):
    """A class, by its number and its name, and how probable it is."""

    label: int
    name: str
    probability: float


class PredictionFormat(NamedTuple):
    """How predictions are written.

    Attributes
    ----------
    head : callable
        Makes the lines before the first prediction from the number of classes per picture.
    line : callable
        Makes the line of a picture from its path and its most probable classes.
    """

    head: Callable[[int], str]
    line: Callable[[str, Sequence[Guess]], str]


def _no_head(top: int) -> str:
    return ""


def _as_text(path: str, guesses: Sequence[Guess]) -> str:
    return f"{printable(path)}: {', '.join(f'{printable(name)} {share:.3f}' for _, name, share in guesses)}\n"


def _csv_head(top: int) -> str:
    return _csv_line("path", *(f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "probability")))


def _as_csv(path: str, guesses: Sequence[Guess]) -> str:
    return _csv_line(path, *(value for guess in guesses for value in (guess.name, guess.probability)))


def _csv_line(*values: str | float) -> str:
    text = StringIO()
    # All text is quoted: before Python 3.13, a carriage return in a path would not be.
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerow(values)
    return text.getvalue()


def _as_json(path: str, guesses: Sequence[Guess]) -> str:
    classes = [{"class": name, "label": label, "probability": share} for label, name, share in guesses]
    return json.dumps({"path": path, "classes": classes}, allow_nan=False) + "\n"


PREDICTION_FORMATS = {
    "text": PredictionFormat(_no_head, _as_text),
    "csv": PredictionFormat(_csv_head, _as_csv),
    "jsonl": PredictionFormat(_no_head, _as_json),
}
"""Ways to write predictions. In ``csv`` and ``jsonl``, probabilities have all digits of a float32."""
