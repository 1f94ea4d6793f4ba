"""The picture of label disagreements, after Figure 5 of the paper."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from kdcache.analysis.disagreement import MixedSamples
from kdcache.files import write_whole

__all__ = ["draw_disagreements"]

COLUMNS, ROWS = 4, 2


def draw_disagreements(samples: MixedSamples, class_names: tuple[str, ...], path: Path) -> None:
    """Draw the disputed samples of which the teacher is surest, with the label of the mix and the teacher's top-5.

    Parameters
    ----------
    samples : MixedSamples
    class_names : tuple of str
    path : Path
        PNG file to write.
    """
    probabilities = samples.teacher.softmax(1)
    surest = probabilities.amax(1).where(samples.disputed, -1.0).argsort(descending=True, stable=True)
    figure = Figure(figsize=(3.2 * COLUMNS, 3.9 * ROWS), layout="constrained")
    figure.suptitle("Mixed images whose label the teacher disputes")
    for axes, row in zip(figure.subplots(ROWS, COLUMNS).flat, surest.tolist(), strict=False):
        if not samples.disputed[row]:
            axes.axis("off")
            continue
        axes.set(xticks=[], yticks=[])
        axes.imshow(samples.views[row].round().to(torch.uint8).permute(1, 2, 0).numpy())
        kept = float(samples.kept[row])
        label = {class_names[samples.labels[row]]: kept}
        partner = class_names[samples.partner_labels[row]]
        label[partner] = label.get(partner, 0.0) + 1 - kept
        top = probabilities[row].topk(min(5, len(class_names)))
        teacher = dict(zip((class_names[index] for index in top.indices), top.values.tolist(), strict=True))
        axes.set_title(f"CutMix: {_listed(label, ' + ')}", fontsize=9)
        axes.set_xlabel(f"teacher:\n{_listed(teacher, chr(10))}", fontsize=9)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def _listed(shares: dict[str, float], between: str) -> str:
    return between.join(f"{name} {share:.2f}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
