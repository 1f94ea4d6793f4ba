"""Loss and accuracy over the epochs of a run, as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from kdcache.files import write_atomically
from kdcache.run.folder import EpochMetrics

__all__ = ["draw_curves"]


def draw_curves(metrics: list[EpochMetrics], path: Path) -> None:
    """Draw the training and test loss, and the test accuracy, over the epochs.

    Parameters
    ----------
    metrics : list of EpochMetrics
    path : Path
        PNG file to write.
    """
    epochs, evaluated = [line.epoch for line in metrics], [line for line in metrics if line.test_top1 is not None]
    looks = [line.epoch for line in evaluated]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [line.train_loss for line in metrics], marker=".", label="training loss")
    loss.plot(looks, [line.test_loss for line in evaluated], marker=".", linestyle="--", label="test cross-entropy")
    loss.set(xlabel="epoch", ylabel="loss (nats)")
    loss.legend()
    accuracy.plot(looks, [line.test_top1 for line in evaluated], marker=".", color="tab:green")
    accuracy.set(xlabel="epoch", ylabel="test top-1 accuracy (%)")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
