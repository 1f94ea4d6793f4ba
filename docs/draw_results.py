"""Draw docs/results.png from the records of two studies in docs/results: what length, views and method are worth."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#777777")

LENGTHS = {
    "KD": ("KD", "KD long"),
    "labels alone": ("CE", "CE long"),
    "KD, no augmentation": ("KD without augmentation", "KD without augmentation long"),
    "labels alone, no augmentation": ("CE without augmentation", "CE without augmentation long"),
}
"""Rows of the study `claims`: with 100 and with 400 epochs."""

METHODS = ("DIST", "DKD", "RLD", "KD")
VIEWS = {"standard": "", "CutMix": "+CutMix", "CutMix-pick": "+CutMix-pick"}
"""Rows of the study `field` are a method and one of these."""


def recorded(study: str, seeds: int) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of top-1 after the last epoch, for each row of a study."""
    with TemporaryDirectory() as out:
        records = FOLDER / "results" / f"{study}.tar.xz"
        show = ["--profile", "mini", "--seeds", str(seeds), "--show", "--records", records, "--out", out]
        subprocess.run([sys.executable, "-m", "kdcache", "reproduce", study, *map(str, show)], check=True)
        cells = json.loads(Path(out, f"{study}-mini.json").read_text())["cells"]
    assert all(cell["last_top1"]["n"] <= seeds for cell in cells)
    return {cell["row"]: cell["last_top1"] for cell in cells}


def draw_lengths(axes: Axes, rows: dict[str, dict[str, float]]) -> None:
    """Accuracy by the number of epochs."""
    for (label, names), color in zip(LENGTHS.items(), COLORS, strict=False):
        means, stds = ([rows[name][field] for name in names] for field in ("mean", "std"))
        style = "--" if "no augmentation" in label else "-"
        axes.errorbar((0, 1), means, stds, color=color, linestyle=style, marker="o", capsize=3)
        axes.text(1.06, means[1], label, color=color, va="center", fontsize=9)
    axes.set_xticks((0, 1), ("100 epochs", "400 epochs"))
    axes.set(xlim=(-0.15, 2.0), ylabel="top-1, %")
    axes.set_title("Longer training: 10 seeds", fontsize=10, loc="left")


def draw_methods(axes: Axes, rows: dict[str, dict[str, float]]) -> None:
    """Accuracy by method and views."""
    for number, (method, color) in enumerate(zip(METHODS, COLORS, strict=False)):
        cells = [rows[f"{method}{ending}"] for ending in VIEWS.values()]
        places = [view + 0.12 * (number - 1.5) for view in range(len(VIEWS))]
        means, stds = ([cell[field] for cell in cells] for field in ("mean", "std"))
        axes.errorbar(places, means, stds, color=color, linestyle="none", marker="o", capsize=3, label=method)
    axes.axhline(rows["student alone"]["mean"], color=COLORS[4], linestyle=":")
    axes.text(
        2.45, rows["student alone"]["mean"] + 0.1, "labels alone, standard", color=COLORS[4], ha="right", fontsize=9
    )
    axes.set_xticks(range(len(VIEWS)), VIEWS)
    axes.set(xlim=(-0.5, 2.5), ylabel="top-1, %")
    axes.set_title("Methods on the same views: 24 epochs, 5 seeds", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")


def main() -> None:
    """Write the figure."""
    figure = Figure(figsize=(9.6, 3.4), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_lengths(left, recorded("claims", 10))
    draw_methods(right, recorded("field", 5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "results.png", dpi=110)


if __name__ == "__main__":
    main()
