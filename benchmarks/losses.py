"""Train every loss on the shipped images, with standard views and with cutmix-pick, kill each once, and go on.

::

    python benchmarks/losses.py --out docs/results/losses.md
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import footer
from kdcache.stages import train_student
from kdcache.stages.teacher import load_teacher

from kdcache.choices import LOSSES
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.models.load import SHIPPED

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.processes import outcome, start  # which is not on the path


def main() -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        teacher = load_teacher(SHIPPED, TeacherConfig.load(out=root / "teacher")).path
        rows = [
            trial(loss, aug, {"teacher": teacher, "epochs": chosen.epochs}, root)
            for loss in (*LOSSES, "crd+kd")
            for aug in ("standard", "cutmix-pick")
        ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    chosen.out.write_text(
        f"""# Every loss on fashion-mini

ResNet8, taught by the shipped ResNet20, {chosen.epochs} epochs, one seed, the weights of the published recipes. "Part"
is the mean over an epoch of the loss itself, with its weight. "Goes on": killed in the first half of the second epoch,
or so, and gone on with, the run ends with the network, metrics and statistics of one that was not.

| loss | views | part in epoch 1 | in epoch {chosen.epochs} | falls | top-1 | goes on |
| --- | --- | --- | --- | --- | --- | --- |
"""
        + "\n".join(lines)
        + "\n"
        + footer()
        + "\n"
    )


def trial(loss: str, aug: str, settings: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Train one loss, whole and killed: the row of the table."""
    settings = {**settings, "loss": loss, "aug": aug, "checkpoint_minutes": 0.01}
    if (loss, aug) == ("ce", "cutmix-pick"):
        settings["pick"] = "student-entropy"  # there is no teacher
    whole = train_student(StudentConfig.load(**settings, out=root / "whole", overwrite=True))
    killed = start("student", **settings, out=root / "killed")
    while killed.is_alive() and not list((root / "killed").glob("checkpoints/epoch-0000001-*")):
        killed.join(0.05)
    killed.join(0.15 * whole.summary["seconds"] / settings["epochs"])
    killed.kill()
    killed.join()
    broken = not (root / "killed" / "summary.json").exists()
    resumed = start("student", **settings, out=root / "killed", resume=True)
    resumed.join()
    goes_on = "yes" if broken and outcome(root / "killed") == outcome(root / "whole") else "NO"
    name = loss.partition("+")[0]
    first, last = (whole.read_metrics()[place].loss_parts[name] for place in (0, -1))
    shutil.rmtree(root / "killed")
    falls = "yes" if last < first else "NO"
    return loss, aug, f"{first:.4g}", f"{last:.4g}", falls, f"{whole.summary['last_top1']:.2f} %", goes_on


if __name__ == "__main__":
    main()
