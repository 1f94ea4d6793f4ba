"""Train with every loss, with standard views and with CutMix-pick; kill each training once, and resume it.

python benchmarks/losses.py --out docs/results/losses.md
"""

import tempfile
from pathlib import Path
from random import Random
from typing import Any

from common import make_parser, table, write_page
from kdcache.stages.teacher import load_teacher

from kdcache.choices import LOSSES, SHIPPED
from kdcache.config import TeacherConfig
from kdcache.run.folder import FinishedRun
from tests.kills import Training, kill_and_resume


def main() -> None:
    """Train, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--losses", nargs="+", default=[*LOSSES, "crd+kd"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-fraction", type=float, default=1.0, help="part of the training images")
    chosen = parser.parse_args()
    settings: dict[str, Any] = {"epochs": chosen.epochs, "train_fraction": chosen.train_fraction}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        settings["teacher"] = load_teacher(SHIPPED, TeacherConfig.load(out=root / "teacher")).path
        rows = [
            trial(loss, aug, settings, root / f"{loss}-{aug}") for loss in chosen.losses for aug in augmentations(loss)
        ]
    write_page(
        chosen.out,
        "Every loss on fashion-mini",
        f"ResNet8 with the shipped ResNet20 as teacher, {chosen.epochs} epochs, one seed, the weights of the published "
        "recipes. The loss is the epoch's mean of the loss itself with its weight. Same bits: after one kill, the "
        "resumed run ends with network, metrics and statistics of the run that was not killed.",
        table(("loss", "views", "epoch 1", f"epoch {chosen.epochs}", "decreases", "top-1", "same bits"), rows),
    )


def augmentations(loss: str) -> tuple[str, ...]:
    """List augmentations whose views a sum is trained on."""
    acts_on = {LOSSES[name].acts_on for name in loss.split("+")}
    if "pairs" in acts_on:
        return ("randaugment",)
    return ("standard", "cutmix-pick") if loss == "ce" or "each" in acts_on else ("standard",)


def trial(loss: str, aug: str, settings: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Train with one loss, undisturbed and killed: a row of the table."""
    folder.mkdir()
    settings = {**settings, "loss": loss, "aug": aug}
    if (loss, aug) == ("ce", "cutmix-pick"):
        settings["pick"] = "student-entropy"  # there is no teacher
    job = Training("student", settings, folder)
    counts = kill_and_resume(job, 1, Random(folder.name))
    run, name = FinishedRun(job.undisturbed), loss.partition("+")[0]
    first, *_, last = (metrics.loss_parts[name] for metrics in run.read_metrics())
    decreases, equal = ("yes" if fact else "NO" for fact in (last < first, counts["equal"] == counts["finished"]))
    return loss, aug, f"{first:.4g}", f"{last:.4g}", decreases, f"{run.summary['last_top1']:.2f} %", equal


if __name__ == "__main__":
    main()
