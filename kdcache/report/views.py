"""The views of an epoch for people: the rows of its table, and a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Table

from kdcache.datasets import Dataset
from kdcache.files import write_atomically
from kdcache.report.tables import table
from kdcache.views import EpochTable, Plan, ViewMaker
from kdcache.views.geometry import random_part

__all__ = ["draw_views", "views_table"]


def views_table(plan: Plan, data: Dataset, epoch: int, samples: int) -> Table:
    """Lay out the first rows of an epoch's table, epochs being counted from 0."""
    drawn = plan.epoch(epoch)
    lines = []
    for position in range(samples):
        sample = drawn.order[position]
        line = [str(position), str(sample), data.class_names[data.train.labels[sample]]]
        line.append(",".join(map(str, _crop(plan, data, drawn, position))))
        line.append("yes" if drawn.flip[position] else "no")
        for slot in drawn.slots:
            parameters = ",".join(f"{value:g}" for value in slot.parameters[position].tolist())
            line.append(f"{drawn.order[slot.partner[position]]} [{parameters}] {slot.lam[position]:.3f}")
        lines.append(line)
    head = ("position", "sample", "class", "crop", "flip", *(f"{kind}: partner [how] kept" for kind in plan.kinds[1:]))
    return table(f"View seed {plan.seed}, epoch {epoch + 1}", head, lines)


def _crop(plan: Plan, data: Dataset, drawn: EpochTable, position: int) -> Sequence[int]:
    """Top and left of the crop; where it is a part of a picture, left, top, right and bottom."""
    if not plan.of_pictures or data.train.pictures is None:
        found: list[int] = drawn.crop[position].tolist()
        return found
    size = data.train.pictures.dimensions(int(drawn.order[position]))
    return random_part(int(drawn.crop[position]), *size)


def draw_views(views: ViewMaker, data: Dataset, epoch: int, samples: int, path: Path) -> None:
    """Draw each image of the first positions with its views below it.

    Parameters
    ----------
    views : ViewMaker
    data : Dataset
    epoch : int
        Counted from 0.
    samples : int
    path : Path
        PNG file to write.
    """
    plan, positions = views.plan, range(samples)
    table = plan.epoch(epoch)
    rows = {"image": data.train.take(torch.from_numpy(table.order[:samples]))}
    rows |= {kind: views.views(epoch, slot, positions).cpu() for slot, kind in enumerate(plan.kinds)}
    figure = Figure(figsize=(1.5 * samples + 0.6, 1.6 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), samples, squeeze=False)
    for row, (kind, images) in enumerate(rows.items()):
        for column, caption in enumerate(_captions(kind, plan, data, epoch, samples)):
            place = axes[row, column]
            place.imshow(images[column].round().to(torch.uint8).permute(1, 2, 0).numpy())
            place.set(xticks=[], yticks=[])
            place.set_title(caption, fontsize=8)
        axes[row, 0].set_ylabel(kind)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def _captions(kind: str, plan: Plan, data: Dataset, epoch: int, samples: int) -> Iterator[str]:
    table, names = plan.epoch(epoch), data.class_names
    for position in range(samples):
        if kind not in plan.kinds[1:]:
            yield names[data.train.labels[table.order[position]]] if kind == "image" else ""
            continue
        slot = table.slots[plan.kinds.index(kind) - 1]
        partner = names[data.train.labels[table.order[slot.partner[position]]]]
        yield f"{slot.lam[position]:.2f}, {partner}"
