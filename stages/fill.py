"""Fill ahead: ask the teacher all that a student will ask, without a student."""

import time
from typing import NamedTuple

from kdcache.answers import budget
from kdcache.answers.codec import format_of
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, problem
from kdcache.report.progress import Reporter
from kdcache.report.tables import file_size
from kdcache.setup import find_teacher, load_data, open_cached_teacher, plan_of, store_path
from kdcache.views import Plan, ViewMaker

__all__ = ["Filled", "fill_answers"]


class Filled(NamedTuple):
    """What came of filling a store.

    Attributes
    ----------
    store : str
    answers, of : int
        Answers that are there now, of all that the student will look up.
    asked : int
        Of these, the ones that this process asked for.
    seconds : float
    """

    store: str
    answers: int
    of: int
    asked: int
    seconds: float


def fill_answers(config: StudentConfig, reporter: Reporter | None = None) -> Filled:
    """Ask the teacher about every view that a student of this config will see, and store the answers.

    Several processes may do so at the same time, on one machine: each takes chunks that no other is at. Under
    ``torchrun``, each takes the GPU of its rank.

    Parameters
    ----------
    config : StudentConfig
        What concerns the student's network and its training does not matter.
    reporter : Reporter, optional
        Hears of the progress; silent by default.

    Returns
    -------
    Filled

    Raises
    ------
    UsageError
        Where nothing is to be kept: ``--cache off``, or no room. Where there is room for a part, a part is filled.
    """
    reporter = reporter or Reporter()
    started = time.perf_counter()
    compute = Compute.choose(config.device, config.precision)
    data = load_data(config)
    config = config.model_copy(update={"teacher": find_teacher(config)})
    plan = plan_of(config, data)
    views = ViewMaker(data.train, plan, config.batch_size, compute.device)
    check_room(config, data, plan)
    cached_teacher = open_cached_teacher(config, data, views, compute, tell=reporter.precomputed)
    assert cached_teacher.store is not None
    answers = total = len(data.train)  # clean ones are filled as the cached teacher is opened
    if plan.crop_flip:
        total = cached_teacher.lam(config.epochs)
        for answers in cached_teacher.fill(config.epochs):
            reporter.precomputed(answers, total)
    views_in_all = len(data.train) * (len(plan.kinds) * config.epochs if plan.crop_flip else 1)
    asked = cached_teacher.pop_counts().forwards
    return Filled(cached_teacher.store.place.where, answers, views_in_all, asked, time.perf_counter() - started)


def check_room(config: StudentConfig, data: Dataset, plan: Plan) -> None:
    """Refuse to fill what ``--cache`` or ``--cache-limit`` leave no room for, before a store is made."""
    if config.cache == "off" or (config.cache == "clean" and plan.crop_flip):
        raise UsageError(problem(f"--cache with --aug {config.aug}", expected="something to keep", got=config.cache))
    format = format_of(config.store_dtype, config.topk)
    assert config.teacher is not None
    where = config.store or store_path(config.teacher, format)
    room = budget.Room.at(where, plan.samples, data.num_classes, format, config.cache_limit)
    if budget.choose(config.cache, plan, config.epochs, room).keep and room.max_tables:
        return
    least, whole = file_size(room.table_bytes), file_size(room.table_bytes * len(plan.kinds) * config.epochs)
    remedy = f"{whole}, or --cache replay to fill a part" if room.max_tables else f"at least {least}"
    raise UsageError(problem("--cache-limit is too small for the answers", expected=remedy, got=file_size(room.limit)))
