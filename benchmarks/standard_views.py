"""How many questions the finite standard views leave, counted by a cached teacher that is driven by the view tables.

A stand-in answers for the teacher: only the counting matters here::

    python benchmarks/standard_views.py > docs/results/standard_views.md
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import footer
from torch import Tensor

from kdcache import models
from kdcache.answers.budget import count_new_views
from kdcache.answers.open import make_cached_teacher, open_store
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.datasets import CARDS, Dataset, Split
from kdcache.views import Plan, ViewMaker


class StandIn(Teacher):
    """Answers with ten pixels of the view."""

    def __call__(self, views: Tensor) -> Tensor:
        """See `Teacher`."""
        return views[:, 0, 16, 8:18].float()


def main() -> None:
    """Count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, nargs="+", default=[240, 960])
    chosen = parser.parse_args()
    images = torch.randint(0, 256, (chosen.images, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    split = Split(images, torch.zeros(chosen.images, dtype=torch.int64))
    data = Dataset(CARDS["fashion-mini"], tuple("abcdefghij"), split, split)
    teacher = StandIn(models.build("resnet8", num_classes=10, seed=0), Compute(torch.device("cpu"), "float32"))
    plan = Plan(chosen.images, 32, 4, crop_flip=True, seed=0)
    views = ViewMaker(split, plan, chosen.images, torch.device("cpu"))
    print(f"""# TeacherCounts about the standard views

`--cache standard`, {chosen.images} images, V = {plan.standard_views} views each (9 x 9 crops, mirrored or not).
E epochs leave V (1 - (1 - 1/V)^E) questions a sample on the mean.

| epochs | questions a sample | least, most | distinct views in the tables | formula | times fewer | seconds |
| --- | --- | --- | --- | --- | --- | --- |""")
    for epochs in chosen.epochs:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            cached_teacher = make_cached_teacher(
                teacher, views, open_store(Path(name) / "store.zarr", teacher, data), "standard", epochs
            )
            for epoch in range(epochs):
                for batch in views.epoch(epoch):
                    assert cached_teacher.logits(batch).equal(teacher(batch.views))
        asked = cached_teacher.pop_counts().forwards
        seen = np.zeros((chosen.images, plan.standard_views), bool)
        for epoch in range(epochs):
            seen.reshape(-1)[plan.standard_keys(views.table(epoch), np.arange(chosen.images))] = True
        assert asked == count_new_views(plan, dict.fromkeys(range(epochs))) == seen.sum()
        each = seen.sum(1)
        expected = plan.standard_views * (1 - (1 - 1 / plan.standard_views) ** epochs)
        figures = (
            f"{asked / chosen.images:.2f}",
            f"{each.min()}, {each.max()}",
            f"{each.mean():.2f}",
            f"{expected:.2f}",
        )
        fewer, seconds = epochs * chosen.images / asked, time.perf_counter() - started
        print(f"| {epochs} | {' | '.join(figures)} | {fewer:.2f} | {seconds:.0f} |")
    print(footer())


if __name__ == "__main__":
    main()
