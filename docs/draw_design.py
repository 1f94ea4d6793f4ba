"""Draw docs/design.png: the modules of kdcache, and the path of a batch through them. Needs matplotlib only."""

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

RECIPES, MANY, METHOD, BASE = "#dff0d8", "#fdebd0", "#dbe9f6", "#eeeeee"

LAYERS = ((MANY, 2), (RECIPES, 1), (MANY, 5), (METHOD, 8), (METHOD, 7), (BASE, 8), (BASE, 9))
"""Color and number of the modules of each layer, from top to bottom."""

LEGEND = ((MANY, "commands, many runs, results"), (RECIPES, "recipes"), (METHOD, "method"), (BASE, "foundations"))


class Step(NamedTuple):
    """A box in the path of a batch."""

    x: float
    y: float
    color: str
    module: str
    text: str


WIDTH, HEIGHT = 2.2, 0.92

PATH = (
    Step(0.1, 1.85, METHOD, "datasets", "B images and labels\nof the training set"),
    Step(2.6, 1.85, METHOD, "views", "the epoch's view table:\nx and M candidates x'"),
    Step(5.1, 1.85, METHOD, "answers", "teacher's logits, from the\nstore or a forward pass"),
    Step(7.6, 1.85, METHOD, "selection", "d of every candidate;\nthe largest half is picked"),
    Step(7.6, 0.15, METHOD, "models", "one forward of the student:\nx and the picked x'"),
    Step(5.1, 0.15, METHOD, "losses", "each loss, a mean over its\nown rows of x and x'"),
    Step(2.6, 0.15, RECIPES, "stages", "backward,\noptimizer step"),
    Step(0.1, 0.15, METHOD, "run", "metrics, statistics,\ncheckpoint"),
)


def box(axes: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    """Draw a box with round corners."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor="#555555"))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], curve: str = "arc3") -> None:
    """Draw an arrow."""
    patch = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=13, color="#555555", connectionstyle=curve, shrinkA=0, shrinkB=0
    )
    axes.add_patch(patch)


def modules() -> list[str]:
    """Read the modules from the table in design.md, in the order of imports."""
    page = Path(__file__).with_name("design.md").read_text("utf-8")
    return re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)


def draw_modules(axes: Axes, top: float) -> None:
    """Draw the modules in layers."""
    axes.text(0.1, top, "Modules: each one imports only from its right and from below", weight="bold", fontsize=11)
    names = modules()[::-1]
    if len(names) != sum(count for _, count in LAYERS):
        raise SystemExit("LAYERS does not fit the table of modules in design.md")
    gap, height = 0.12, 0.44
    for row, (color, count) in enumerate(LAYERS):
        layer, names = names[:count], names[count:]
        width = (9.7 - gap * (count - 1)) / count
        for column, name in enumerate(layer):
            x, y = 0.1 + column * (width + gap), top - 0.15 - (row + 1) * (height + gap) + gap
            box(axes, x, y, width, height, color)
            axes.text(x + width / 2, y + height / 2, name, ha="center", va="center", fontsize=10.5)
    for column, (color, text) in enumerate(LEGEND):
        x, y = 0.1 + 2.6 * column, top - 0.15 - len(LAYERS) * (height + gap) - 0.2
        box(axes, x, y, 0.24, 0.2, color)
        axes.text(x + 0.32, y + 0.1, text, va="center", fontsize=9)


def draw_path(axes: Axes) -> None:
    """Draw the path of a batch."""
    title = "Path of a batch: stages/student.py, one training step"
    axes.text(0.1, 2.95, title, weight="bold", fontsize=11)
    for number, step in enumerate(PATH, 1):
        box(axes, step.x, step.y, WIDTH, HEIGHT, step.color)
        middle = step.x + WIDTH / 2
        title = f"{number}. {step.module}"
        axes.text(middle, step.y + 0.7, title, ha="center", va="center", weight="bold", fontsize=10)
        axes.text(middle, step.y + 0.31, step.text, ha="center", va="center", fontsize=9)
    for before, after in pairwise(PATH):
        if before.y != after.y:
            arrow(axes, (before.x + WIDTH / 2, before.y), (after.x + WIDTH / 2, after.y + HEIGHT))
        elif before.x < after.x:
            arrow(axes, (before.x + WIDTH, before.y + HEIGHT / 2), (after.x, after.y + HEIGHT / 2))
        else:
            arrow(axes, (before.x, before.y + HEIGHT / 2), (after.x + WIDTH, after.y + HEIGHT / 2))
    # The logits of the picked views and of x, which the losses read, do not go through the selection.
    arrow(axes, (6.2, 1.85), (6.2, 0.15 + HEIGHT))
    axes.text(6.28, 1.46, "logits", fontsize=9, va="center")
    arrow(axes, (7.6 + 0.55, 0.15 + HEIGHT), (7.6 + 0.55, 1.85))
    axes.text(7.6 + 0.47, 1.46, "scoring forward", fontsize=9, va="center", ha="right")
    axes.text(7.6 + 1.18, 1.46, "picked rows", fontsize=9, va="center")


def main() -> None:
    """Write the picture beside this file."""
    figure = Figure(figsize=(9.9, 8.0), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9.9), ylim=(0, 8.0))
    axes.axis("off")
    draw_modules(axes, 7.7)
    draw_path(axes)
    figure.savefig(Path(__file__).with_name("design.png"), dpi=110)


if __name__ == "__main__":
    main()
