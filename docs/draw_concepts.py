"""Draw the pictures of docs/concepts.md, from the shipped images and teacher: views.png, cache.png and picking.png."""

import tempfile
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import kdcache
from kdcache.losses import kd_loss, kl_divergence

FOLDER = Path(__file__).parent
BLUE, ORANGE, GRAY = "#1f77b4", "#d62728", "#777777"

AUGMENTATIONS = ("cutmix", "mixup", "cutout", "randaugment")
STUDENTS = (("ResNet8", "standard"), ("ResNet8", "cutmix"), ("ResNet8", "cutmix-pick"), ("WRN-16-1", "cutmix-pick"))
"""Networks and augmentations of students that are trained one after the other, from one store."""

EPOCHS, TEMPERATURE = 3, 4.0


def show(axes: Axes, image: torch.Tensor) -> None:
    """Show an image of shape (3, H, W) with values from 0 to 255."""
    axes.imshow(image.round().to(torch.uint8).permute(1, 2, 0).numpy())
    axes.set(xticks=[], yticks=[])


def draw_views(images: object, labels: tuple[int, ...] = (8, 9)) -> None:
    """An image of each label in two epochs: x, and an x' of each augmentation."""
    views = kdcache.Views.of_images(images, "+".join(AUGMENTATIONS), seed=3)
    first = next(views.epoch(0))
    indices = [int(first.samples[first.labels == label][0]) for label in labels]
    rows = [(index, epoch) for index in indices for epoch in (0, 1)]
    figure = Figure(figsize=(8.4, 6.6), facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), len(AUGMENTATIONS) + 1)
    for (index, epoch), line in zip(rows, grid, strict=True):
        batch = next(batch for batch in views.epoch(epoch) if index in batch.samples)
        position = batch.samples.tolist().index(index)
        for slot, axes in enumerate(line):
            show(axes, batch.views[slot * len(batch) + position])
        line[0].set_ylabel(f"epoch {epoch}", fontsize=9)
    for axes, name in zip(grid[0], ("x", *AUGMENTATIONS), strict=True):
        axes.set_title(name if name == "x" else f"x': {name}", fontsize=10)
    figure.savefig(FOLDER / "views.png", dpi=110)


def draw_cache(images: object) -> None:
    """Teacher forwards and cache hits of four students of one view seed, counted."""
    counts = []
    with tempfile.TemporaryDirectory() as store:
        for _, aug in STUDENTS:
            views = kdcache.Views.of_images(images, aug)
            teacher = kdcache.open_teacher("shipped", views, store)
            for epoch in range(EPOCHS):
                for batch in views.epoch(epoch):
                    teacher.logits(batch)
            counts.append(teacher.pop_counts().as_metrics())
    figure = Figure(figsize=(8.4, 2.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    names = [f"{number}. {network}, {aug}" for number, (network, aug) in enumerate(STUDENTS, start=1)]
    forwards, hits = ([count[name] for count in counts] for name in ("teacher_forwards", "cache_hits"))
    axes.barh(names, forwards, color=ORANGE, label="teacher forwards")
    axes.barh(names, hits, left=forwards, color=BLUE, label="read from the store")
    for row, (asked, read) in enumerate(zip(forwards, hits, strict=True)):
        axes.text(asked + read + 50, row, f"{asked:,} + {read:,}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.18 * max(map(sum, zip(forwards, hits, strict=True)))), xlabel=f"views, {EPOCHS} epochs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.55))
    figure.savefig(FOLDER / "cache.png", dpi=110)


def draw_picking(images: object, shown: int = 8) -> None:
    """The candidates of some images, their d, and which are picked by a student that was trained for an epoch."""
    views = kdcache.Views.of_images(images, "cutmix-pick")
    student = kdcache.build_network("resnet8", num_classes=10, seed=0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with tempfile.TemporaryDirectory() as store:
        teacher = kdcache.open_teacher("shipped", views, store)
        for batch in views.epoch(0):
            loss = kd_loss(student(batch.views), teacher.logits(batch), TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        batch = next(views.epoch(1))
        candidates, answers = batch.mixed_views(), teacher.logits(batch)[len(batch) :]
        with torch.no_grad():
            scores = student(candidates)
    d = kl_divergence(scores, answers, TEMPERATURE)
    picked = set(kdcache.pick(batch, answers, scores, temperature=TEMPERATURE).tolist())
    figure = Figure(figsize=(8.4, 2.7), facecolor="white", layout="constrained")
    grid = figure.subplots(2, shown)
    for slot, line in enumerate(grid):
        for sample, axes in enumerate(line):
            row = slot * len(batch) + sample
            show(axes, candidates[row])
            axes.set_xlabel(f"d = {d[row]:.3f}", fontsize=9, color=BLUE if row in picked else GRAY)
            if row in picked:
                axes.add_patch(Rectangle((-0.5, -0.5), 32, 32, fill=False, edgecolor=BLUE, linewidth=4))
        line[0].set_ylabel(f"x' {slot + 1}", fontsize=9)
    figure.savefig(FOLDER / "picking.png", dpi=110)


if __name__ == "__main__":
    data = kdcache.load_dataset("fashion-mini", train_fraction=0.2)
    draw_views(data)
    draw_cache(data)
    draw_picking(data)
