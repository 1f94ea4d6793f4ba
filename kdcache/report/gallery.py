"""Galleries of images: mixed views on which the teacher disagrees with the label (Figure 5), and hard images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdcache.analysis.disagreement import DisagreementReport
from kdcache.analysis.hardness import Hardness
from kdcache.datasets import Dataset
from kdcache.report.style import write_figure
from kdcache.report.tables import format_probabilities, shortened

__all__ = ["draw_extremes", "draw_image", "plot_disagreements"]

COLUMNS, ROWS = 4, 2

NAME_CHARS = 24
"""Length of a class name beside a picture."""


def plot_disagreements(report: DisagreementReport, path: Path) -> None:
    """Draw the samples on which the teacher disagrees most confidently, with the mixed label and the teacher's top-5.

    Parameters
    ----------
    report : DisagreementReport
    path : Path
        PNG or SVG file to write.
    """
    figure = Figure(figsize=(3.2 * COLUMNS, 3.9 * ROWS), layout="constrained")
    figure.suptitle("Mixed images on which the teacher disagrees with the label, most confident first")
    for position, axes in enumerate(figure.subplots(ROWS, COLUMNS).flat):
        if position >= len(report.examples):
            axes.axis("off")
            continue
        example = report.examples[position]
        draw_image(axes, example.view)
        label = format_probabilities(_short(example.label), "\n+ ")
        axes.set_title(f"{report.aug}: {label}", fontsize=9)
        axes.set_xlabel("teacher:\n" + format_probabilities(_short(example.teacher), "\n"), fontsize=9)
    write_figure(figure, path)


def draw_extremes(hardness: Hardness, data: Dataset, path: Path) -> None:
    """Draw the training images with the largest and the smallest mean d.

    Parameters
    ----------
    hardness : Hardness
    data : Dataset
    path : Path
        PNG or SVG file to write.
    """
    columns = max(len(hardness.highest), len(hardness.lowest))
    figure = Figure(figsize=(1.7 * columns + 0.4, 4.6), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for row, (samples, title) in enumerate(
        ((hardness.highest, "largest mean d"), (hardness.lowest, "smallest mean d"))
    ):
        images = data.train.take(torch.tensor([sample for sample, _ in samples]))
        for column, (image, (sample, d)) in enumerate(zip(images, samples, strict=True)):
            draw_image(axes[row, column], image)
            label = shortened(data.class_name(int(data.train.labels[sample])), NAME_CHARS)
            axes[row, column].set_title(f"{label}\nd {d:.3g}, no. {sample}", fontsize=8)
        axes[row, 0].set_ylabel(title)
    write_figure(figure, path)


def draw_image(axes: Axes, image: Tensor) -> None:
    """Draw an image (3, H, W) without ticks."""
    axes.set(xticks=[], yticks=[])
    axes.imshow(image.permute(1, 2, 0).numpy())


def _short(probabilities: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(shortened(name, NAME_CHARS), probability) for name, probability in probabilities]
