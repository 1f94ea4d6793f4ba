"""The oracle: the one door to the teacher's answers. It answers from what is stored, and asks where it must.

A *question* is one view put to the oracle: *asked* is a forward of the teacher, *answered* comes from the store.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.compute import Compute
from kdcache.datasets import Split
from kdcache.errors import KdcacheError
from kdcache.models import Network
from kdcache.models.checkpoint import fingerprint
from kdcache.store.clean import DTYPE, read_clean, write_clean
from kdcache.views import Batch

__all__ = ["FORWARD_ROWS", "Oracle", "Teacher"]

FORWARD_ROWS = {"cpu": 64, "cuda": 256, "mps": 256}
"""Rows of every forward of the teacher, Q, by kind of device.

The last bits of a row depend on the size of the forward, not on its neighbours: with one size an answer is the same
bits whoever asks it along with whatever else.
"""


class Teacher:
    """A frozen network that answers views.

    Parameters
    ----------
    network : Network
    compute : Compute
        Where and how precisely it runs.
    """

    def __init__(self, network: Network, compute: Compute) -> None:
        self.network = network.to(compute.device).eval().requires_grad_(False)
        self.compute = compute
        self.rows = FORWARD_ROWS[compute.device.type]

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> Tensor:
        """Answer views, in forwards of exactly Q rows, the last one padded.

        Parameters
        ----------
        views : Tensor, shape (B, 3, H, W)
            Pixel values 0 to 255.

        Returns
        -------
        Tensor of float16, shape (B, C)
            Logits, rounded to the precision of the store.

        Raises
        ------
        KdcacheError
            Where an answer is not finite in that precision.
        """
        answers = []
        for rows in views.split(self.rows):
            missing = self.rows - len(rows)
            padded = torch.cat([rows, rows[:1].expand(missing, -1, -1, -1)]) if missing else rows
            with self.compute.autocast():
                answers.append(self.network(padded)[: len(rows)])
        logits = torch.cat(answers).to(torch.float16)
        if not logits.isfinite().all():
            raise KdcacheError(f"the teacher {self.network.name} gave an answer that is not finite in {DTYPE}")
        return logits

    def identity(self, data: Split) -> dict[str, Any]:
        """What its clean answers about a training set are a function of: the fingerprint of their store."""
        return {
            "teacher": fingerprint(self.network),
            "dataset": data.fingerprint,
            "plan": "clean",
            "dtype": str(DTYPE),
            "teacher precision": self.compute.precision,
        }


class Oracle:
    """Hands out the teacher's answers to the views of a step.

    Parameters
    ----------
    teacher : Teacher
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._clean: Tensor | None = None
        self._asked = self._answered = 0

    def remember_clean(self, path: Path, data: Split, made_with: dict[str, Any]) -> None:
        """Know the answers to all clean views: from their store, or, where there is none yet, by asking and writing it.

        Parameters
        ----------
        path : Path
            The zarr store.
        data : Split
            The training set.
        made_with : dict
            Recorded in a store that is made: versions, threads.

        Raises
        ------
        UsageError
            Where the store holds answers of another teacher, about other data, or of another precision.
        KdcacheError
            Where it is damaged.
        """
        expected = self._teacher.identity(data)
        if not path.exists():
            forwards = torch.arange(len(data)).split(self._teacher.rows)
            answers = [self._teacher(data.take(samples).to(self._teacher.compute.device)) for samples in forwards]
            self._asked += len(data)
            made_with = made_with | {"forward rows": self._teacher.rows}
            write_clean(path, torch.cat(answers).cpu().numpy(), expected, made_with)
        self._clean = torch.from_numpy(read_clean(path, expected))

    def clean(self) -> Tensor:
        """The answers to all clean views, float32, shape (N, C), once they are remembered."""
        assert self._clean is not None, "remember_clean comes first"
        self._answered += len(self._clean)
        return self._clean.float()

    def ask(self, batch: Batch) -> Tensor:
        """Answer every view of a step.

        Parameters
        ----------
        batch : Batch
            (1 + M) B views.

        Returns
        -------
        Tensor of float32, shape ((1 + M) B, C)
            Logits, the same bits whether they were stored or just asked.
        """
        if batch.clean and self._clean is not None:
            self._answered += len(batch.views)
            return self._clean[batch.samples.cpu()].to(batch.views.device).float()
        return self.ask_views(batch.views)

    def ask_views(self, views: Tensor) -> Tensor:
        """Put views without a name to the teacher, as an analysis does: (B, 3, H, W) to float32 logits (B, C)."""
        self._asked += len(views)
        return self._teacher(views).float()

    def count(self) -> dict[str, int]:
        """Count the questions asked and answered since the last count."""
        counted = {"questions_asked": self._asked, "questions_answered": self._answered}
        self._asked = self._answered = 0
        return counted
