"""Checkpoints of a training: all that the next step depends on, so that a run that was killed ends as any other.

A checkpoint is a file of `kdcache.tensor_files`: the networks, the losses that train or remember something, the
optimizer, the random state and the statistics of the epoch are its tensors. The last two are kept.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcache import distributed, signals, tensor_files
from kdcache.errors import KdcacheError, UsageError, first_line

__all__ = ["Checkpoints", "Progress"]

FORMAT = "kdcache-training-2"
KEPT = 2

log = logging.getLogger("kdcache")


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    epoch : int
        The epoch under way, counted from 0.
    step : int
        Steps of it that are done.
    losses : float
        Sum of their losses.
    seconds : float
        Time taken so far.
    teacher_counts : list of int
        Asked about, and put, in these steps, see `kdcache.answers.cached_teacher.TeacherCounts`.
    metrics : list of dict
        The lines of the epochs that are done.
    resumed : list of dict
        Where the training was gone on with: epoch, counted from 1, and steps of it that were done.
    statistics : dict of str to Tensor
        What the epoch has added up; empty where none of its steps is done.
    """

    epoch: int = 0
    step: int = 0
    losses: float = 0.0
    seconds: float = 0.0
    teacher_counts: list[int] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[dict[str, int]] = field(default_factory=list)
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run.

    Parameters
    ----------
    folder : Path
        Made by the first checkpoint.
    minutes : float
        After which one is due.
    modules : mapping of str to Module
        Whose state is kept, by name.
    optimiser : Optimizer
        Of the parameters of these modules.
    """

    def __init__(
        self, folder: Path, minutes: float, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
    ) -> None:
        self.folder, self.minutes = folder, minutes
        self._modules, self._optimiser = dict(modules), optimiser
        self._parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        self._written = time.monotonic()

    def due(self) -> bool:
        """Tell whether it is time for a checkpoint, because of the clock or because the work is to stop."""
        late = time.monotonic() - self._written >= 60 * self.minutes
        return distributed.any_rank(late or signals.stop_requested())

    def keep(self, progress: Progress) -> None:
        """Write a checkpoint, and stop the work if that was asked for.

        Raises
        ------
        signals.Stopped
        """
        self._written = time.monotonic()
        if distributed.is_main():
            self._write(progress)
        if distributed.any_rank(signals.stop_requested()):
            raise signals.Stopped

    def latest(self) -> Progress | None:
        """Go back to the last checkpoint that is whole; ``None`` where there is none.

        Raises
        ------
        KdcacheError
            Where a checkpoint is whole but does not fit the networks.
        """
        for path in reversed(self._files()):
            try:
                state, facts = tensor_files.load(path, FORMAT)
            except UsageError as error:
                log.warning("checkpoint %s cannot be read; the one before it is taken: %s", path, first_line(error))
                continue
            self._restore(state, path)
            del facts["format"]
            return Progress(**facts, statistics=_part(state, "statistics"))
        return None

    def remove(self) -> None:
        """Remove the checkpoints of a run that is finished."""
        for path in self._files():
            path.unlink()
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.safetensors"))

    def _write(self, progress: Progress) -> None:
        state = {f"statistics/{name}": tensor for name, tensor in progress.statistics.items()}
        for name, module in self._modules.items():
            state |= {f"{name}/{key}": tensor for key, tensor in module.state_dict().items()}
        for place, parameter in enumerate(self._parameters):
            for key, value in self._optimiser.state[parameter].items():
                if isinstance(value, Tensor):
                    state[f"optimiser/{place}/{key}"] = value
        state["random/cpu"] = torch.get_rng_state()
        for kind, generator in _generators().items():
            state[f"random/{kind}"] = generator.get_rng_state()
        facts = {name: value for name, value in vars(progress).items() if name != "statistics"}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"epoch-{progress.epoch:07d}-step-{progress.step:07d}.safetensors"
        tensor_files.save(path, state, {"format": FORMAT, **facts})
        older = [file for file in self._files() if file < path]
        newer = [file for file in self._files() if file > path]  # which could not be read, or this one were another
        for file in (*older[: 1 - KEPT], *newer):
            file.unlink()

    def _restore(self, state: Mapping[str, Tensor], path: Path) -> None:
        try:
            for name, module in self._modules.items():
                module.load_state_dict(_part(state, name))
        except RuntimeError as error:
            raise KdcacheError(f"checkpoint {path} does not fit the run: {first_line(error)}") from None
        for place, parameter in enumerate(self._parameters):
            if momentum := _part(state, f"optimiser/{place}"):
                # A fused step goes through the memory as it lies, which must be in the order of the parameter's.
                self._optimiser.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(value) for key, value in momentum.items()
                }
        torch.set_rng_state(state["random/cpu"])
        for kind, generator in _generators().items():
            if f"random/{kind}" in state:
                generator.set_rng_state(state[f"random/{kind}"])


def _generators() -> dict[str, Any]:
    """Find what else than the processor draws random numbers, as dropout does."""
    there = {"cuda": torch.cuda.is_initialized(), "mps": torch.backends.mps.is_available()}
    return {kind: getattr(torch, kind) for kind, is_there in there.items() if is_there}


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in state.items() if key.startswith(f"{name}/")}
