"""What a resumed run must have in common with what it recorded: images, teacher, settings, completed epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdcache.config import TrainingConfig
from kdcache.datasets import Dataset
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.extensions import source_digest
from kdcache.models.initial import InitialWeights
from kdcache.run.checkpoint import TrainingState, recorded_environment
from kdcache.run.folder import EpochMetrics, RunFolder

__all__ = ["check_epochs", "check_settings", "origin_of", "resumable_environment"]


def origin_of(
    config: TrainingConfig, data: Dataset, teacher: Mapping[str, str] | None, init: InitialWeights | None
) -> dict[str, str]:
    """Identify what a run is made from: images, teacher, initial weights, the user's own code."""
    origin = {"dataset": data.train.fingerprint, "test set": data.test.fingerprint, **(teacher or {})}
    if init is not None:
        origin |= {"init": init.digest}
    # The images of a dataset are compared, not the code that lists them.
    own = (address for address, setting in config.code.items() if setting != "dataset")
    return origin | {f"code of {address}": source_digest(address) for address in own}


def resumable_environment(folder: RunFolder, origin: Mapping[str, str]) -> dict[str, Any]:
    """Read the environment of a run; refuse one that is finished, or that has other images or another teacher."""
    if folder.is_finished:
        raise UsageError(problem(f"run folder {folder.path}", got="a run that another process has just finished"))
    environment = recorded_environment(folder)
    recorded = environment.get("origin", origin)  # a run that was killed at once has none
    if wrong := [name for name in origin if recorded.get(name) != origin[name]]:
        remedy = "Restore it as it was, or start another run."
        lines = (
            problem(f"run folder {folder.path}: {one}", expected=recorded.get(one), got=origin[one], remedy=remedy)
            for one in wrong
        )
        raise UsageError(*lines)
    return environment


def check_settings(config: TrainingConfig, progress: TrainingState) -> None:
    """Refuse settings that are not those of the checkpoint."""
    if progress.epoch != len(progress.metrics):
        what = f"epoch of the checkpoint, which has the metrics of {len(progress.metrics)} epochs"
        raise KdcacheError(problem(what, expected=len(progress.metrics), got=progress.epoch))
    if not progress.settings:  # no checkpoint yet
        return
    try:
        recorded = type(config)(**progress.settings)
    except ValueError as error:
        raise KdcacheError(problem("settings in the checkpoint", got=first_line(error))) from None
    if problems := config.differences(recorded, moved=True):
        raise UsageError(*problems)


def check_epochs(config: TrainingConfig, metrics: Sequence[EpochMetrics]) -> None:
    """Refuse a number of epochs that the completed ones contradict."""
    if config.epochs < len(metrics):
        done = f"at least the {len(metrics)} that are completed"
        raise UsageError(problem("--epochs", expected=done, got=config.epochs))
    for line in metrics:
        rate = config.learning_rate(line.epoch - 1)
        if line.lr != rate:
            expected = f"a number that keeps the learning rate {line.lr:g} of the completed epoch {line.epoch}"
            raise UsageError(problem("--epochs", expected=expected, got=f"{config.epochs}, which makes it {rate:g}"))
