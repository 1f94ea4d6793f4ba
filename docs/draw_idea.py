"""Draw docs/idea.png: how the views of an image become a step of the student."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kdcache import datasets
from kdcache.views import ViewPlan, Views

BLUE, GREEN, GRAY = "#dbe9f6", "#dff0d8", "#eeeeee"


def main() -> None:
    """Write the figure."""
    data = datasets.load("fashion-mini")
    plan = ViewPlan(len(data.train), 32, 4, crop_flip=True, mixes=("cutmix", "cutmix"), seed=5)
    batch = next(Views(data.train, plan, 64, torch.device("cpu")).epoch(0))
    sample = 5
    names = ["image", "x", "x' 1", "x' 2"]
    images = [data.train.images[batch.samples[sample]], *(batch.views[slot * 64 + sample] for slot in range(3))]

    figure = Figure(figsize=(11, 3.6))
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 11), ylim=(0, 3.6))
    canvas.axis("off")
    places = [(0.3, 1.3), (2.1, 2.2), (2.1, 1.1), (2.1, 0.0)]
    for name, image, (x, y) in zip(names, images, places, strict=True):
        axes = figure.add_axes(((x + 0.1) / 11, (y + 0.28) / 3.6, 0.95 / 11, 0.95 / 3.6))
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.axis("off")
        canvas.text(x + 0.57, y + 0.16, name, ha="center", fontsize=9)
    boxes = [
        (4.1, 1.35, 1.7, 1.0, "cached teacher\nstored logits, or\na forward pass", BLUE),
        (6.4, 1.35, 1.6, 1.0, "pick\nhalf of the x',\nlargest KL", GRAY),
        (8.6, 1.35, 2.1, 1.0, "student\nx: CE and KL\npicked x': KL only", GREEN),
    ]
    for x, y, width, height, words, color in boxes:
        canvas.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.05", facecolor=color))
        canvas.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=9)
    for start, end in [
        ((1.4, 1.95), (2.1, 2.9)),
        ((1.4, 1.85), (2.1, 1.85)),
        ((1.4, 1.75), (2.1, 0.8)),
        *(((3.25, y), (4.0, 1.85)) for y in (2.9, 1.85, 0.8)),
        ((5.9, 1.85), (6.3, 1.85)),
        ((8.1, 1.85), (8.5, 1.85)),
    ]:
        canvas.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="#555555"))
    figure.savefig(Path(__file__).with_name("idea.png"), dpi=110)


main()
