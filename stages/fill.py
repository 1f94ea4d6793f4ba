"""Fill ahead: ask the teacher all that a student will ask, without a student."""

import time
from typing import NamedTuple

from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.errors import UsageError, fault
from kdcache.report.progress import Reporter
from kdcache.report.tables import file_size
from kdcache.resolve import find_teacher, load_data, open_oracle, plan_of
from kdcache.views import ViewMaker

__all__ = ["Filled", "fill_answers"]


class Filled(NamedTuple):
    """What came of filling a store.

    Attributes
    ----------
    store : str
    answers : int
        Answers that are there now, of those that the student will look up.
    asked : int
        Of these, the ones that this process asked for.
    seconds : float
    """

    store: str
    answers: int
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
        Where nothing is to be kept: ``--cache off``, or no room.
    """
    reporter = reporter or Reporter()
    started = time.perf_counter()
    compute = Compute.choose(config.device, config.precision)
    data = load_data(config)
    config = config.model_copy(update={"teacher": find_teacher(config)})
    plan = plan_of(config, data)
    views = ViewMaker(data.train, plan, config.batch_size, compute.device)
    if config.cache == "off":
        raise UsageError(fault("--cache", allowed="something to fill", given="off"))
    oracle = open_oracle(config, data, views, compute, tell=reporter.filled)
    assert oracle.store is not None
    answers = len(data.train)  # clean ones are filled as the oracle is opened
    if plan.crop_flip:
        answers = 0
        total = oracle.kept(config.epochs)
        for answers in oracle.fill(config.epochs):
            reporter.filled(answers, total)
    if not answers:
        least = file_size(oracle.store.table_bytes)
        raise UsageError(fault("--cache-limit leaves no room for a table", allowed=f"{least} more than is stored"))
    asked = oracle.count()["questions_asked"]
    return Filled(oracle.store.place.where, answers, asked, time.perf_counter() - started)
