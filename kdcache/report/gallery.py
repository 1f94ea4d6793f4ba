"""Pictures of images: those whose mixed label the teacher disputes, after Figure 5, and those that stay hard."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdcache.analysis.disagreement import DisagreementReport, Example
from kdcache.analysis.hardness import Hardness
from kdcache.datasets import Dataset
from kdcache.report.style import write_figure

__all__ = ["draw_disagreements", "draw_extremes", "said"]

COLUMNS, ROWS = 4, 2


def draw_disagreements(report: DisagreementReport, path: Path) -> None:
    """Draw the disputed samples of which the teacher is surest, with the label of the mix and the teacher's top-5.

    Parameters
    ----------
    report : DisagreementReport
    path : Path
        PNG or SVG file to write.
    """
    figure = Figure(figsize=(3.2 * COLUMNS, 3.9 * ROWS), layout="constrained")
    figure.suptitle("Mixed images whose label the teacher disputes, the surest first")
    for place, axes in enumerate(figure.subplots(ROWS, COLUMNS).flat):
        if place >= len(report.examples):
            axes.axis("off")
            continue
        example: Example = report.examples[place]
        _show(axes, example.view)
        axes.set_title(f"{report.aug}: {said(example.label, ' + ')}", fontsize=9)
        axes.set_xlabel(f"teacher:\n{said(example.teacher, chr(10))}", fontsize=9)
    write_figure(figure, path)


def draw_extremes(found: Hardness, data: Dataset, path: Path) -> None:
    """Draw the training images with the largest and the smallest mean d.

    Parameters
    ----------
    found : Hardness
    data : Dataset
    path : Path
        PNG or SVG file to write.
    """
    columns = max(len(found.highest), len(found.lowest))
    figure = Figure(figsize=(1.7 * columns + 0.4, 4.6), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for row, (samples, title) in enumerate(((found.highest, "largest mean d"), (found.lowest, "smallest mean d"))):
        images = data.train.take(torch.tensor([sample for sample, _ in samples]))
        for place, (image, (sample, d)) in enumerate(zip(images, samples, strict=True)):
            _show(axes[row, place], image)
            label = data.class_names[int(data.train.labels[sample])]
            axes[row, place].set_title(f"{label}\nd {d:.3g}, no. {sample}", fontsize=8)
        axes[row, 0].set_ylabel(title)
    write_figure(figure, path)


def said(shares: Sequence[tuple[str, float]], between: str) -> str:
    """Write names with their shares."""
    return between.join(f"{name} {share:.2f}" for name, share in shares)


def _show(axes: Axes, image: Tensor) -> None:
    axes.set(xticks=[], yticks=[])
    axes.imshow(image.permute(1, 2, 0).numpy())
