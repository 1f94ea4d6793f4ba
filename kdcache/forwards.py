"""The forwards of a student in a training step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcache import distributed
from kdcache.config import StudentConfig
from kdcache.config.settings import flag_of
from kdcache.errors import UsageError, problem
from kdcache.models import Network

__all__ = ["FrozenRunningStats", "WithFeatures", "check_forwards"]


class WithFeatures(nn.Module):
    """A network whose forward takes all views of a step, and returns logits and, if asked, features.

    One module for DDP and torch.compile to wrap: DDP expects one forward before each backward.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, parts: Sequence[Tensor], features: bool = False) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Forward one or more parts of views, one after the other: batch norm sees each by itself.

        Returns
        -------
        logits : Tensor, shape (R, C)
            Of all parts.
        vectors : Tensor or None, shape (R, D)
            Of all parts; ``None`` unless features were asked for.
        features : list of Tensor
            Of the first part, see `kdcache.models.Network.with_features`; empty unless asked for.
        """
        if not features:
            return torch.cat([*map(self.network, parts)]), None, []
        logits, found = zip(*map(self.network.with_features, parts), strict=True)
        return torch.cat(logits), torch.cat([features[-1] for features in found]), found[0]


class FrozenRunningStats:
    """Context in which batch norms use the statistics of the batch without updating their running statistics.

    Scoring candidates must not change the statistics that the student is evaluated with.

    Parameters
    ----------
    network : Module
        In training mode.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
        # Set through the attribute dictionaries: Module.__setattr__ takes ten times as long.
        self._norms = [vars(norm) for norm in norms if norm.track_running_stats]

    def __enter__(self) -> None:
        self._track(False)

    def __exit__(self, *_: object) -> None:
        self._track(True)

    def _track(self, running: bool) -> None:
        for norm in self._norms:
            norm["track_running_stats"] = running


def check_forwards(config: StudentConfig, student: Network) -> None:
    """Refuse a student without vectors where a loss reads them, and switches that its batch norms do not allow.

    Raises
    ------
    UsageError
    """
    if config.needs_vectors:
        student.linear_head()
    norms = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    tracked = any(norm.track_running_stats for norm in norms)
    for name, has_effect in (("separate_forwards", bool(norms)), ("scoring_updates_stats", tracked)):
        if getattr(config, name) and not has_effect:
            flag = flag_of(name, StudentConfig.model_fields[name])
            raise UsageError(problem(flag, expected="a network with batch norm", got=config.model))
    picks_of_all = config.augmentation.pick is not None and config.pick_scope == "global"
    if distributed.world_size() > 1 and config.separate_forwards and picks_of_all and not config.sync_batchnorm:
        what = "--pick-scope under torchrun, with --separate-forwards"
        expected = "rank, since batch norm cannot normalize the only pick of a process"
        raise UsageError(problem(what, expected=expected, got="global"))
