"""Checkpoints: everything the next step depends on, so that a resumed run gives the same bits as an uninterrupted one.

A checkpoint is a file of `kdcache.tensor_files`. Its tensors are the state of the networks, of losses with parameters
or buffers, of the optimizer and of the random generators, and the statistics of the current epoch; everything else is
metadata.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from kdcache import distributed, signals, tensor_files
from kdcache.checked_files import FILE, FOLDER, kind_of
from kdcache.errors import KdcacheError, UsageError, first_line
from kdcache.models.base import load_state
from kdcache.run.contents import check_environment
from kdcache.run.folder import RunFolder

__all__ = ["Checkpoints", "TrainingState", "has_checkpoint", "recorded_environment", "remove_checkpoints"]

FORMAT = "kdcache-training-4"

NAME = re.compile(r"epoch-\d{7}-step-\d{7}\.safetensors", re.ASCII)

CHECKPOINTS_KEPT = 2
"""If the newest one is damaged, the run resumes from the one before."""

log = logging.getLogger("kdcache")


@dataclass
class TrainingState:
    """How far a training has come.

    Attributes
    ----------
    epoch : int
        Current epoch, counted from 0.
    step : int
        Steps of it that are done.
    losses : float
        Sum of the losses of these steps.
    correct, labelled : int
        Labelled views in them, and how many of those were classified correctly.
    seconds : float
        Training time so far.
    teacher_counts : list of int
        The fields of `kdcache.answers.computer.TeacherCounts` for these steps.
    metrics : list of dict
        Metrics of the completed epochs.
    resumed : list of dict
        Where the training was resumed: epoch, counted from 1, and steps of it that were done.
    settings, environment : dict
        The settings and the environment of the run, as in its files.
    statistics : dict of str to Tensor
        Statistics of the epoch so far; empty before its first step.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

    epoch: int = 0
    step: int = 0
    losses: float = 0.0
    correct: int = 0
    labelled: int = 0
    seconds: float = 0.0
    teacher_counts: Annotated[list[int], Field(max_length=2)] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[dict[str, int]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run.

    Parameters
    ----------
    folder : Path
        Created with the first checkpoint.
    minutes : float
        Time between checkpoints.
    modules : mapping of str to Module
        Modules to save, by name.
    optimizer : Optimizer
        Of the parameters of these modules.
    """

    def __init__(
        self, folder: Path, minutes: float, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> None:
        self.folder, self.minutes = folder, minutes
        self._modules, self._optimizer = dict(modules), optimizer
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Tell whether to save now, because of the time passed or because the process was asked to stop."""
        late = time.monotonic() - self._saved_at >= 60 * self.minutes
        return distributed.any_rank(late or signals.stop_requested())

    def save(self, progress: TrainingState) -> None:
        """Save a checkpoint, and stop if the process was asked to.

        Raises
        ------
        signals.Stopped
        """
        self._saved_at = time.monotonic()
        if distributed.is_main():
            self._write(progress)
        if distributed.any_rank(signals.stop_requested()):
            raise signals.Stopped

    def restore_latest(self) -> TrainingState | None:
        """Restore the newest readable checkpoint; ``None`` if there is none.

        Raises
        ------
        KdcacheError
            If it does not fit the modules.
        """
        latest = _read_latest(self.folder)
        if latest is None:
            return None
        path, state, progress = latest
        self._restore(state, path)
        return progress

    def remove(self) -> None:
        """Remove the checkpoints of a finished run."""
        remove_checkpoints(self.folder)

    def _write(self, progress: TrainingState) -> None:
        state = {f"statistics/{name}": tensor for name, tensor in progress.statistics.items()}
        for name, module in self._modules.items():
            state |= {f"{name}/{key}": tensor for key, tensor in module.state_dict().items()}
        for number, parameter in enumerate(self._parameters):
            for key, value in self._optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    state[f"optimizer/{number}/{key}"] = value
        state["random/cpu"] = torch.get_rng_state()
        for device, generator in _device_generators().items():
            state[f"random/{device}"] = generator.get_rng_state()
        metadata = {name: value for name, value in vars(progress).items() if name != "statistics"}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"epoch-{progress.epoch:07d}-step-{progress.step:07d}.safetensors"
        tensor_files.save(path, state, {"format": FORMAT, **metadata})
        older = [file for file in _files(self.folder) if file < path]
        unreadable = [file for file in _files(self.folder) if file > path]  # else the run had resumed from there
        for file in (*older[: 1 - CHECKPOINTS_KEPT], *unreadable):
            file.unlink()

    def _restore(self, state: Mapping[str, Tensor], path: Path) -> None:
        try:
            for name, module in self._modules.items():
                load_state(module, _with_prefix(state, name))
            for number, parameter in enumerate(self._parameters):
                if buffers := _with_prefix(state, f"optimizer/{number}"):
                    self._optimizer.state[parameter] = {key: _like(parameter, value) for key, value in buffers.items()}
            torch.set_rng_state(state["random/cpu"])
            for device, generator in _device_generators().items():
                if f"random/{device}" in state:
                    generator.set_rng_state(state[f"random/{device}"])
        except (RuntimeError, KeyError, TypeError) as error:
            raise KdcacheError(f"checkpoint {path} does not fit the run: {first_line(error)}") from None


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder, and the folder if nothing else is in it."""
    for path in _files(folder):
        path.unlink()
    if kind_of(folder) == FOLDER and not any(folder.iterdir()):
        folder.rmdir()


def recorded_environment(folder: RunFolder) -> dict[str, Any]:
    """Read the environment that a run was started in; if its file is damaged or missing, from the newest checkpoint.

    Returns
    -------
    dict
        Empty for a run that was killed before it wrote either.

    Raises
    ------
    UsageError
        If the file is damaged and there is no checkpoint.
    """
    damage = None
    try:
        if recorded := folder.read_environment():
            return recorded
    except UsageError as error:
        damage = error
    if latest := _read_latest(folder.checkpoints_folder):
        path, _, progress = latest
        return check_environment(path, progress.environment)
    if damage is not None:
        raise damage
    return {}


def has_checkpoint(folder: RunFolder) -> bool:
    """Whether a run can be resumed from a checkpoint."""
    return _read_latest(folder.checkpoints_folder) is not None


_TRAINING_STATE = TypeAdapter(TrainingState)


def _read_latest(folder: Path) -> tuple[Path, dict[str, Tensor], TrainingState] | None:
    """Read the newest readable checkpoint in a folder: its path, its tensors, and how far the training had come."""
    for path in reversed(_files(folder)):
        try:
            state, metadata = tensor_files.load(path, FORMAT)
        except UsageError as error:
            log.warning("could not read checkpoint %s, using the one before: %s", path, first_line(error))
            continue
        del metadata["format"]
        try:
            progress = _TRAINING_STATE.validate_json(json.dumps(metadata))
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(map(str, detail["loc"]))
            raise KdcacheError(f"checkpoint {path} does not fit the run: {where}: {detail['msg']}") from None
        return path, state, replace(progress, statistics=_with_prefix(state, "statistics"))
    return None


def _files(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the oldest first. What a link leads to is not the run's."""
    if kind_of(folder) != FOLDER:
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and kind_of(path) == FILE)


def _device_generators() -> dict[str, Any]:
    """Find the random generators of devices in use, which dropout draws from."""
    in_use = {"cuda": torch.cuda.is_initialized(), "mps": torch.backends.mps.is_available()}
    return {device: getattr(torch, device) for device, used in in_use.items() if used}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Move a tensor of the optimizer to the device of its parameter; a number, such as a count of steps, stays one."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    # A fused step walks through memory: the buffers need the memory layout of the parameter.
    return torch.empty_like(parameter).copy_(value)


def _with_prefix(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in state.items() if key.startswith(f"{name}/")}
