"""Comparison of stored logits with the teacher's, and the error of an encoding."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import DEFAULT_ENCODING, AnswerEncoding, require_finite
from kdcache.answers.head import read_head
from kdcache.answers.store import CLEAN, AnswerStore, ReplayTableName
from kdcache.answers.teacher import Teacher
from kdcache.config.augs import parse_mix
from kdcache.datasets import Split
from kdcache.extensions import is_address
from kdcache.views import ViewPlan, Views
from kdcache.views.custom import identified
from kdcache.views.plan import parse_kind

__all__ = ["EncodingError", "TableCheck", "encoding_error_on_clean", "measure_encoding_error", "verify"]

log = logging.getLogger("kdcache")


class TableCheck(NamedTuple):
    """Result of checking one table.

    Attributes
    ----------
    table : str
        Path of the table.
    rows, total_rows : int
        Rows that are stored and match their checksum, of the rows of the table.
    damaged : int
        Chunks that have a commit record but are damaged.
    compared : int
        Rows that were compared with a forward of the teacher.
    max_error, mean_error : float
        Absolute difference, 0 if nothing was compared: the largest of a logit or of what is stored, and the mean of
        what is stored, which is logits or vectors.
    argmax_changes : int
        Compared rows whose largest logit belongs to another class.
    """

    table: str
    rows: int
    total_rows: int
    damaged: int
    compared: int
    max_error: float
    mean_error: float
    argmax_changes: int


def verify(
    store: AnswerStore, teacher: Teacher, split: Split, padding: int | None, samples: int | None, seed: int = 0
) -> Iterator[TableCheck]:
    """Check every chunk of a store, and compare a random sample of its rows with forwards of the teacher.

    Parameters
    ----------
    store : AnswerStore
    teacher : Teacher
    split : Split
        The training images.
    padding : int or None
        Of the crop, in pixels, see `kdcache.views.ViewPlan`.
    samples : int or None
        Number of rows to compare, rounded up to whole forwards; ``None`` compares all.
    seed : int
        Of the random sample.

    Yields
    ------
    TableCheck
    """
    if store.head is not None:
        read_head(store)  # raises if it is damaged
    tables = _of_current_code(store.table_paths(), split.image_size)
    # The sample consists of blocks of neighboring rows, each of which is one forward.
    chunks = store.table(CLEAN).chunks  # the same in all tables
    starts = np.concatenate([np.arange(chunk.start, chunk.stop, teacher.rows) for chunk in chunks])
    blocks = len(tables) * len(starts)
    wanted = blocks if samples is None else min(blocks, -(-samples // teacher.rows))
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(blocks)[:wanted]
    for index, path in enumerate(tables):
        of_table = chosen[chosen % len(tables) == index] // len(tables)
        yield _check(store, path, teacher, split, padding, starts[np.sort(of_table)])


def _check(
    store: AnswerStore, path: str, teacher: Teacher, split: Split, padding: int | None, starts: np.ndarray
) -> TableCheck:
    table, name = store.table(path), ReplayTableName.parse(path)
    views = _view_maker(name, teacher, split, padding)
    cached_teacher = CachedTeacher(teacher, views, store=store)
    rows = compared = argmax_changes = 0
    max_error, total_error = 0.0, 0.0
    for chunk, (committed, span) in enumerate(zip(table.committed(), table.chunks, strict=True)):
        columns = table.read(chunk) if committed else None
        if columns is None:
            continue
        rows += len(span)
        for start in starts[(starts >= span.start) & (starts < span.stop)].tolist():
            block = range(start, min(start + teacher.rows, span.stop))
            if name is None:
                images = split.take(torch.arange(block.start, block.stop)).to(teacher.compute.device)
            else:
                images = views.views(name.epoch, views.plan.slots, block)
            stored = {name: one[block.start - span.start : block.stop - span.start] for name, one in columns.items()}
            both = (cached_teacher.compute(images), stored)
            expected, found = map(cached_teacher.decode_logits, both)
            argmax_changes += int((expected.argmax(1) != found.argmax(1)).sum())
            errors = [(expected - found).abs()]
            if cached_teacher.keeps_vectors:  # which may differ where logits do not
                vectors, found_vectors = map(cached_teacher.decode, both)
                errors.append((vectors - found_vectors).abs())
            max_error = max(max_error, *(error.max().item() for error in errors))
            total_error += errors[-1].mean(1).sum(dtype=torch.float64).item()
            compared += len(block)
    mean_error = total_error / compared if compared else 0.0
    return TableCheck(path, rows, store.samples, len(table.damaged), compared, max_error, mean_error, argmax_changes)


def _of_current_code(paths: Sequence[str], image_size: int) -> list[str]:
    """Leave out the views of an augmentation whose code has changed since, which cannot be made again."""
    kept = []
    for path in paths:
        name = ReplayTableName.parse(path)
        mix = parse_kind(name.kind)[0] if name else CLEAN
        if is_address(mix) and identified(address := parse_mix(mix)[0], image_size) != mix:
            log.warning("%s is not compared: the code of %s has changed", path, address)
            continue
        kept.append(path)
    return kept


def _view_maker(name: ReplayTableName | None, teacher: Teacher, split: Split, padding: int | None) -> Views:
    """Make the views whose last slot is the one of a table."""
    seed, kind = (name.seed, name.kind) if name else (0, CLEAN)
    plan = ViewPlan(len(split), split.image_size, padding, crop_flip=True, seed=seed).with_last_kind(kind)
    return Views(split, plan, teacher.rows, teacher.compute.device)


class EncodingError(NamedTuple):
    """What is lost when logits pass through an encoding.

    Attributes
    ----------
    mean_kl, max_kl : float
        Kullback-Leibler divergence of the decoded logits from the original ones, in nats.
    argmax_changes : float
        Share of the rows whose largest logit belongs to another class.
    """

    mean_kl: float
    max_kl: float
    argmax_changes: float


def measure_encoding_error(logits: Tensor, encoding: AnswerEncoding, temperature: float) -> EncodingError:
    """Measure what is lost when logits (B, C) pass through an encoding, at a temperature."""
    columns = encoding.encode(logits)
    require_finite(columns)
    decoded = encoding.decode(columns, logits.shape[1])
    log_p, log_q = ((one.double() / temperature).log_softmax(1) for one in (logits, decoded))
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    argmax_changes = (decoded.argmax(1) != logits.argmax(1)).double().mean()
    return EncodingError(kl.mean().item(), kl.max().item(), argmax_changes.item())


def encoding_error_on_clean(
    stores: Iterable[AnswerStore], encoding: AnswerEncoding, temperature: float
) -> EncodingError | None:
    """Measure what an encoding loses on clean views of which some stores hold all logits; ``None`` if none does."""
    for store in stores:
        if store.encoding == DEFAULT_ENCODING and (columns := store.table(CLEAN).read(0)):
            logits = store.encoding.decode(columns, store.classes)  # one chunk is a large enough sample
            return measure_encoding_error(logits, encoding, temperature)
    return None
