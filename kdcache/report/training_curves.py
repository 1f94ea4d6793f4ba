"""Chart of a run's loss and accuracy over the epochs."""

from pathlib import Path

from kdcache.files import write_atomically
from kdcache.run.folder import EpochMetrics

__all__ = ["plot_training_curves"]


def plot_training_curves(metrics: list[EpochMetrics], path: Path) -> None:
    """Draw training loss, test loss and test accuracy over the epochs.

    Parameters
    ----------
    metrics : list of EpochMetrics
    path : Path
        PNG file to write.
    """
    from matplotlib.figure import Figure  # half a second that a refused or stopped training does not spend

    evaluated = [line for line in metrics if line.test_top1 is not None]
    epochs, evaluated_epochs = [line.epoch for line in metrics], [line.epoch for line in evaluated]
    figure = Figure(figsize=(9, 3.5))
    # Fixed margins: measuring all texts to lay the chart out takes as long as drawing it.
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.15, "top": 0.94, "wspace": 0.26}
    loss, accuracy = figure.subplots(1, 2, gridspec_kw=margins)
    loss.plot(epochs, [line.train_loss for line in metrics], marker=".", label="training loss")
    test_losses = [line.test_loss for line in evaluated]
    loss.plot(evaluated_epochs, test_losses, marker=".", linestyle="--", label="test cross-entropy")
    loss.set(xlabel="epoch", ylabel="loss (nats)")
    loss.legend()
    accuracy.plot(evaluated_epochs, [line.test_top1 for line in evaluated], marker=".", color="tab:green")
    accuracy.set(xlabel="epoch", ylabel="test top-1 accuracy (%)")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
