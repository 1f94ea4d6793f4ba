"""Precompute the teacher's logits for all views that a student will see, without a student."""

import time
from typing import NamedTuple

from kdcache.answers import budget
from kdcache.config import StudentConfig
from kdcache.errors import UsageError, problem
from kdcache.report.progress import Reporter
from kdcache.run.find import find_teacher
from kdcache.setup import choose_compute, load_data, make_plan, with_epochs
from kdcache.stores import find_answers_of
from kdcache.teachers import open_cached_teacher
from kdcache.views import Views

__all__ = ["PrecomputeResult", "precompute_answers"]


class PrecomputeResult(NamedTuple):
    """Result of precomputing logits.

    Attributes
    ----------
    store : str
        Folder or URL.
    stored, total : int
        Views whose logits are in the store now, and views that the student will see.
    teacher_forwards : int
        Views that went through the teacher in this process.
    seconds : float
    """

    store: str
    stored: int
    total: int
    teacher_forwards: int
    seconds: float


def precompute_answers(config: StudentConfig, reporter: Reporter | None = None) -> PrecomputeResult:
    """Compute and store the teacher's logits for every view that a student of this config will see.

    Several processes may do this at once on one machine and share the work. Under ``torchrun``, each uses the GPU of
    its rank.

    Parameters
    ----------
    config : StudentConfig
        Settings of the student's network and training have no effect.
    reporter : Reporter, optional
        Receives the progress; silent by default.

    Raises
    ------
    UsageError
        If nothing is to be stored, because of ``--cache off`` or the size limit. If a part fits, a part is stored.
    """
    if config.further_teachers:
        remedy = "Run it for each of them."
        raise UsageError(problem("--teacher", expected="one", got=len(config.teachers), remedy=remedy))
    if not config.needs_teacher:
        raise UsageError(problem(f"--loss {config.loss}", expected="a loss that reads the teacher's answers"))
    reporter = reporter or Reporter()
    started = time.perf_counter()
    compute = choose_compute(config)
    config = config.model_copy(update={"teacher": find_teacher(config)})
    data = load_data(config)
    config = with_epochs(config, len(data.train))
    plan = make_plan(config, data)
    views = Views(data.train, plan, config.batch_size, compute.device)
    # Checked before a store is created.
    answers = find_answers_of(config, data, compute)
    budget.require_space(config.cache, plan, config.epochs, answers.space(config.cache_limit))
    if error := answers.location.write_error():
        what, remedy = f"the store {answers.location.where} cannot be written", "Name another one with --store."
        raise UsageError(problem(what, got=error, remedy=remedy))
    cached_teacher = open_cached_teacher(config, data, views, compute, reporter.precomputed)
    stored = total = plan.samples  # clean views are precomputed when the cached teacher is opened
    if plan.crop_flip:
        stored = 0
        to_store, total = cached_teacher.num_stored(config.epochs), budget.uncached_forwards(plan, config.epochs)
        for stored in cached_teacher.precompute(config.epochs):
            reporter.precomputed(stored, to_store)
    forwards = cached_teacher.pop_counts().forwards
    return PrecomputeResult(answers.location.where, stored, total, forwards, time.perf_counter() - started)
