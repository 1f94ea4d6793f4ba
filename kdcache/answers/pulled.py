"""A teacher that is not at hand: its logits are read from a copied store, and no view goes through its network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.answers.card import AnswerCard, describe_views
from kdcache.answers.card_store import open_answers
from kdcache.answers.durable_store import ROOT_KEY
from kdcache.answers.find import Answers, image_facts
from kdcache.answers.fingerprint import require_same_fingerprint
from kdcache.answers.head import read_head
from kdcache.answers.store import CLEAN, AnswerStore, ReplayTableName
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.datasets import Dataset
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.models import Network
from kdcache.views import ViewPlan

__all__ = ["AbsentTeacher", "find_pulled_answers"]


class _AbsentBody(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, images: Tensor) -> Tensor:
        raise KdcacheError(problem(f"answers {self.where}", expected="the logits of every view", got="none of some"))


class _AbsentNetwork(Network):
    """A network without weights but those of the last layer, which a store of vectors has."""

    def __init__(self, card: AnswerCard, store: AnswerStore) -> None:
        super().__init__(
            _AbsentBody(store.location.where),
            name=card.network,
            num_classes=store.classes,
            image_size=card.image_size,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )
        self.rendering, self._store = card.rendering, store

    def linear_head(self) -> nn.Linear:
        return read_head(self._store).to(self.scale.device)


class AbsentTeacher(Teacher):
    """The teacher on a card: it has at most a last layer, and raises a `KdcacheError` if it is asked for more.

    Parameters
    ----------
    card : AnswerCard
    store : AnswerStore
    device : torch.device
    """

    def __init__(self, card: AnswerCard, store: AnswerStore, device: torch.device) -> None:
        super().__init__(_AbsentNetwork(card, store).to(device), Compute(device, store.precision))
        self.fingerprint = str(store.fingerprint["teacher"])
        self._store_sha256 = card.files[ROOT_KEY].sha256

    @property
    def origin(self) -> dict[str, str]:
        """The teacher, and the SHA-256 of the store's metadata: others may have been computed on another device."""
        return {**super().origin, "answers": self._store_sha256}


def find_pulled_answers(
    where: str | Path,
    data: Dataset,
    plan: ViewPlan,
    epochs: int,
    encoding: str,
    device: torch.device,
    image_settings: Mapping[str, Any] | None = None,
) -> Answers:
    """Open a copied store for the views of a training, which it must hold all of.

    Parameters
    ----------
    where : str or Path
        Folder or URL.
    data : Dataset
        The pictures of the training, in any rendering.
    plan : ViewPlan
    epochs : int
    encoding : str
        Its name.
    device : torch.device
        Of the training.
    image_settings : mapping, optional
        The settings that say which images `data` has: named where the store has others.

    Raises
    ------
    UsageError
        If there is no card, or the store is for other images, another encoding or other views.
    KdcacheError
        If it is damaged.
    """
    card, store = open_answers(where, keep=True)
    data, remedy = data.rendered(card.rendering), f"'kdcache cache info {where}' says what it is for."
    facts = image_facts(data, encoding)
    stored = {name: store.fingerprint.get(name) for name in facts}
    require_same_fingerprint(where, stored, facts, store.image_settings, image_settings, remedy)
    needed = {ReplayTableName(plan.seed, epoch, kind).path for epoch in range(epochs) for kind in plan.kinds}
    tables = set(store.table_paths())
    if missing := (needed if plan.crop_flip else {CLEAN}) - tables:
        expected, got = ("; ".join(describe_views(paths)) for paths in (missing, tables))
        raise UsageError(problem(f"views in {where}", expected=expected, got=got))
    teacher = AbsentTeacher(card, store, device)
    return Answers(teacher, data, store.location, store.encoding, store, read_only=True)
