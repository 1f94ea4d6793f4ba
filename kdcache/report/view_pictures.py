"""The views of an epoch as a table of their parameters and as a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from kdcache.datasets import Dataset
from kdcache.files import write_atomically
from kdcache.report.tables import TextTable
from kdcache.views import EpochTable, ViewPlan, Views
from kdcache.views.geometry import random_resized_box

__all__ = ["draw_views", "views_table"]


def views_table(plan: ViewPlan, data: Dataset, epoch: int, samples: int) -> TextTable:
    """Make a table of the views at the first positions of an epoch, which is counted from 0."""
    epoch_table = plan.epoch(epoch)
    rows = []
    for position in range(samples):
        sample = epoch_table.order[position]
        row = [str(position), str(sample), data.class_name(int(data.train.labels[sample]))]
        row.append(",".join(map(str, _crop(plan, data, epoch_table, position))))
        row.append("yes" if epoch_table.flip[position] else "no")
        for slot in epoch_table.slots:
            parameters = ",".join(f"{value:g}" for value in slot.parameters[position].tolist())
            row.append(f"{epoch_table.order[slot.partner[position]]} [{parameters}] {slot.lam[position]:.3f}")
        rows.append(row)
    mixes = (f"{kind}: partner [parameters] lambda" for kind in plan.kinds[1:])
    header = ("position", "sample", "class", "crop", "flip", *mixes)
    return TextTable(f"View seed {plan.seed}, epoch {epoch + 1}", header, rows)


def _crop(plan: ViewPlan, data: Dataset, epoch_table: EpochTable, position: int) -> Sequence[int]:
    """Top and left of a padded crop; left, top, right and bottom of a random part of a picture."""
    if not plan.random_resized or data.train.pictures is None:
        offset: list[int] = epoch_table.crop[position].tolist()
        return offset
    size = data.train.pictures.dimensions(int(epoch_table.order[position]))
    return random_resized_box(int(epoch_table.crop[position]), *size)


def draw_views(views: Views, data: Dataset, epoch: int, samples: int, path: Path) -> None:
    """Draw the images at the first positions of an epoch with their views below them.

    Parameters
    ----------
    views : Views
    data : Dataset
    epoch : int
        Counted from 0.
    samples : int
    path : Path
        PNG file to write.
    """
    plan, positions = views.plan, range(samples)
    rows = {"image": data.train.take(torch.from_numpy(plan.epoch(epoch).order[:samples]))}
    rows |= {kind: views.views(epoch, slot, positions).cpu() for slot, kind in enumerate(plan.kinds)}
    figure = Figure(figsize=(1.5 * samples + 0.6, 1.6 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), samples, squeeze=False)
    for row, (kind, images) in enumerate(rows.items()):
        for column, caption in enumerate(_captions(kind, plan, data, epoch, samples)):
            panel = axes[row, column]
            panel.imshow(images[column].round().to(torch.uint8).permute(1, 2, 0).numpy())
            panel.set(xticks=[], yticks=[])
            panel.set_title(caption, fontsize=8)
        axes[row, 0].set_ylabel(kind)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def _captions(kind: str, plan: ViewPlan, data: Dataset, epoch: int, samples: int) -> Iterator[str]:
    """Yield the class of each image, nothing for x, and lambda and the partner's class for x'."""
    epoch_table, labels = plan.epoch(epoch), data.train.labels
    for position in range(samples):
        if kind not in plan.kinds[1:]:
            yield data.class_name(int(labels[epoch_table.order[position]])) if kind == "image" else ""
            continue
        slot = epoch_table.slots[plan.kinds.index(kind) - 1]
        partner = data.class_name(int(labels[epoch_table.order[slot.partner[position]]]))
        yield f"{slot.lam[position]:.2f}, {partner}"
