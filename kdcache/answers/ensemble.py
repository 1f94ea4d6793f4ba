"""Several teachers as one: each with its own store, their logits averaged."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from kdcache.answers.cached_teacher import CachedTeacher, TeacherOutputs
from kdcache.answers.computer import TeacherCounts
from kdcache.compute import Stopwatch
from kdcache.errors import UsageError, problem
from kdcache.models import Network
from kdcache.views import Batch, Views

__all__ = ["AnyTeacher", "TeacherEnsemble"]


class TeacherEnsemble:
    """Gives the mean of the logits of several teachers for the views of a batch.

    A teacher whose logits are stored costs no forward, in an ensemble as by itself.

    Parameters
    ----------
    members : sequence of CachedTeacher
        Of the batches of the same views.
    weights : sequence of float, optional
        Of the members, positive; by default equal.
    temperature : float, optional
        Average the probabilities at this temperature instead: the softmax of the result at it is the mean of theirs.

    Raises
    ------
    UsageError
        If the members differ in the number of classes, in how pictures become their images, or in precision.
    """

    def __init__(
        self, members: Sequence[CachedTeacher], weights: Sequence[float] = (), temperature: float | None = None
    ) -> None:
        facts: dict[str, list[object]] = {
            "number of classes": [member.classes for member in members],
            "images": [member.network.rendering.evaluation for member in members],
            "precision": [member.teacher.compute.precision for member in members],
        }
        remedies = {"precision": "Give one to all of them: that of a store is taken otherwise."}
        if problems := [
            problem(
                f"{name} of the teachers",
                expected="the same for all",
                got=", ".join(map(str, found)),
                remedy=remedies.get(name),
            )
            for name, found in facts.items()
            if len(set(found)) > 1
        ]:
            raise UsageError(*problems)
        if weights and (len(weights) != len(members) or not all(0 < weight < math.inf for weight in weights)):
            expected = f"{len(members)} numbers above 0"
            raise UsageError(problem("weights of the teachers", expected=expected, got=", ".join(map(str, weights))))
        if temperature is not None and not 0 < temperature < math.inf:
            raise UsageError(problem("temperature of the mean", expected="a number above 0", got=temperature))
        self.members, self.temperature = tuple(members), temperature
        total = sum(weights) or len(members)
        self.weights = [weight / total for weight in weights or [1.0] * len(members)]
        self.stopwatch = Stopwatch(members[0].teacher.compute.device)

    @classmethod
    def open(
        cls,
        openers: Sequence[Callable[[], CachedTeacher]],
        views: Views,
        weights: Sequence[float] = (),
        temperature: float | None = None,
    ) -> Self:
        """Open the teachers of some views.

        If students have another size, pictures are decoded for the teachers too wherever one of them has to see them.
        """
        members, renderings = [], []
        for open_one in openers:
            members.append(open_one())
            renderings.append(views.other_rendering)
        ensemble = cls(members, weights, temperature)
        views.other_rendering = lambda epoch: next((one for find in renderings if (one := find(epoch))), None)
        return ensemble

    @property
    def network(self) -> Network:
        """The network of the first teacher."""
        return self.members[0].network

    @property
    def origin(self) -> dict[str, str]:
        """What a run records of the teachers, see `CachedTeacher.origin`."""
        digest = hashlib.sha256("".join(member.teacher.fingerprint for member in self.members).encode())
        return {**self.members[0].origin, "teacher": digest.hexdigest()}

    def begin_epoch(self) -> None:
        """See `CachedTeacher.begin_epoch`."""
        for member in self.members:
            member.begin_epoch()

    def logits(self, batch: Batch) -> Tensor:
        """Average the teachers' logits for the views of a batch.

        Returns
        -------
        Tensor of float32, shape ((1 + M) B, C)
        """
        with self.stopwatch.running():
            weighted = [
                (weight, member.logits(batch)) for weight, member in zip(self.weights, self.members, strict=True)
            ]
            if (tau := self.temperature) is None:
                return torch.stack([weight * logits for weight, logits in weighted]).sum(0)
            shares = [math.log(weight) + torch.log_softmax(logits / tau, dim=1) for weight, logits in weighted]
            return tau * torch.stack(shares).logsumexp(0)

    def outputs(self, batch: Batch, features: bool = False) -> TeacherOutputs:
        """See `CachedTeacher.outputs`. Features and vectors of several networks have no mean.

        Raises
        ------
        UsageError
            If features are asked for.
        """
        if features:
            raise UsageError(problem("losses on features", expected="one teacher", got=f"{len(self.members)}"))
        return TeacherOutputs(self.logits(batch))

    def pop_counts(self) -> TeacherCounts:
        """Return the counts of all teachers since the last call, and reset them."""
        counts = TeacherCounts()
        for member in self.members:
            counts = counts.plus(member.pop_counts())
        return counts


AnyTeacher = CachedTeacher | TeacherEnsemble
"""What gives the teacher's logits to a training."""
