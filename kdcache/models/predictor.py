"""Predictions for pictures: by the network of a run, or by an exported file."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.choices import IMAGE_SIZES
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.sources import Files
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.models import checkpoint
from kdcache.models.checkpoint import Description
from kdcache.models.onnx_body import open_session

__all__ = ["Prediction", "Predictor", "load_predictor", "predict"]

PIXELS_PER_BATCH, MAX_BATCH = 2**22, 64
"""A batch has as many pictures as fit into these numbers of pixels and pictures, but at least one."""


class Predictor(NamedTuple):
    """A network in use.

    Attributes
    ----------
    path : Path
        The file that it comes from.
    facts : Description
        How pictures become its images, and its classes.
    probabilities : callable
        Computes (B, C) float32 from pixels (B, 3, S, S), uint8.
    """

    path: Path
    facts: Description
    probabilities: Callable[[Tensor], Tensor]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers, if the file names none."""
        return self.facts.class_names or tuple(map(str, range(self.facts.num_classes)))


class Prediction(NamedTuple):
    """The probabilities of all classes, float32 (C,), for a picture."""

    path: str
    probabilities: Tensor


def load_predictor(path: Path) -> Predictor:
    """Load a network from a file of kdcache, or from an ONNX file that it exported.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or does not state its classes and preprocessing.
    """
    is_file_of_network = checkpoint.is_kdcache_file(path) or not os.path.isfile(path)
    return _of_checkpoint(path) if is_file_of_network else _of_onnx(path)


def _of_checkpoint(path: Path) -> Predictor:
    network = checkpoint.load(path).eval()

    def probabilities(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(images).float().softmax(1)

    return Predictor(path, checkpoint.describe(path, checkpoint.metadata(path)), probabilities)


def _of_onnx(path: Path) -> Predictor:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(problem(f"could not read {path}", got=error.strerror)) from error
    expected = "a run folder, or a file that kdcache exported as ONNX or safetensors"
    session = open_session(content, "cpu", f"network {path}", expected)
    facts = _onnx_facts(path, session.get_modelmeta().custom_metadata_map)
    given, made = (
        [(end.type, end.shape[1:]) for end in ends] for ends in (session.get_inputs(), session.get_outputs())
    )
    sides = [3, facts.image_size, facts.image_size]
    wanted = [("tensor(uint8)", sides)], [("tensor(float)", [facts.num_classes])]
    if (given, made) != wanted or not IMAGE_SIZES[0] <= facts.image_size <= IMAGE_SIZES[1]:
        raise UsageError(problem(f"input and output of {path}", expected=wanted, got=(given, made)))
    name = session.get_inputs()[0].name

    def probabilities(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return Predictor(path, facts, probabilities)


def _onnx_facts(path: Path, entries: dict[str, str]) -> Description:
    try:
        stated = {name: json.loads(text) for name, text in entries.items() if name in Description.model_fields}
    except ValueError as error:
        raise UsageError(problem(f"metadata of {path}", expected="JSON", got=first_line(error))) from None
    if not stated:
        remedy = "Export the network with 'kdcache export --format onnx'."
        raise UsageError(
            problem(f"metadata of {path}", expected="classes and preprocessing", got="none", remedy=remedy)
        )
    return checkpoint.describe(path, stated)


class _Batch(NamedTuple):
    """Images (B, 3, S, S) of the pictures that could be read, and what is wrong with each picture, or ``None``."""

    images: Tensor
    problems: list[str | None]


def predict(predictor: Predictor, files: Files, max_pixels: int, workers: int) -> Iterator[Prediction | str]:
    """Predict the classes of pictures, a batch at a time.

    Parameters
    ----------
    predictor : Predictor
    files : Files
    max_pixels : int
        Pixels above which a picture is not decoded.
    workers : int
        Processes that decode ahead.

    Yields
    ------
    Prediction or str
        For each file in order; a line that says what is wrong, if it cannot be read.

    Raises
    ------
    KdcacheError
        If a probability is not finite.
    """
    pictures = Pictures(files, predictor.facts.rendering, max_pixels=max_pixels)
    batch_size = min(MAX_BATCH, max(1, PIXELS_PER_BATCH // predictor.facts.image_size**2))
    batches = [range(start, min(start + batch_size, len(files))) for start in range(0, len(files), batch_size)]
    for rows, batch in zip(batches, prefetch_map(partial(_read, pictures), batches, workers), strict=True):
        found = iter(predictor.probabilities(batch.images) if len(batch.images) else ())
        for row, what in zip(rows, batch.problems, strict=True):
            yield what or _finite(predictor, Prediction(files.name(row), next(found)))


def _read(pictures: Pictures, rows: range) -> _Batch:
    side = pictures.rendering.image_size
    images = [torch.empty(0, 3, side, side, dtype=torch.uint8)]
    problems: list[str | None] = []
    for row in rows:
        try:
            images.append(pictures.clean(torch.tensor([row])))
            problems.append(None)
        except UsageError as error:
            problems.append(str(error))
    return _Batch(torch.cat(images), problems)


def _finite(predictor: Predictor, prediction: Prediction) -> Prediction:
    if not prediction.probabilities.isfinite().all():  # a network that diverged, or a file with absurd numbers
        what = f"probabilities of {prediction.path} by the network {predictor.path}"
        raise KdcacheError(problem(what, expected="finite numbers", got=prediction.probabilities.tolist()))
    return prediction
