"""Kill trainings, precomputations or studies at random moments, resume them, and compare with undisturbed ones.

python benchmarks/kill.py trainings --n 24 --out docs/results/reliability.md
"""

import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from common import make_parser, table, write_page
from kdcache.stages import train_teacher

from kdcache.config import TeacherConfig
from tests.kills import PRECOMPUTATIONS, TRAININGS, Job, Precomputation, Study, kill_and_resume, make_training
from tests.samples import small_settings, write_pictures
from tests.studies import start_study, write_study

TITLES = {
    "trainings": "Killed trainings",
    "precomputations": "Killed precomputations",
    "studies": "Killed studies",
}

TEXTS = {
    "trainings": """Each training of a ResNet8 on 90 small images saves a checkpoint after each step. It is killed with
SIGKILL and resumed with `--resume` until the number of kills is reached; a run that finishes before is compared, and a
new one begins. Equal: network, metrics, statistics and clean logits have the bits of a run that was not killed.""",
    "precomputations": """Processes write the teacher's logits for 40 epochs of 90 small images, three tables of one
chunk each, into one store, and are killed with SIGKILL. Lost: chunks committed before a kill that are missing or
changed after it. Damaged: files that were then truncated, zeroed, emptied, altered by a bit or deleted. Equal: every
chunk and commit record has the bytes of a store whose writers were not killed.""",
    "studies": """Studies train a teacher and four students, two at a time. In turn they are killed alone, so that
trainings keep running; killed with their trainings; and interrupted with SIGINT. Equal: the results and each run's
network, metrics and statistics have the bits of a study that was not disturbed.""",
}

MOMENTS = """Kills come in turn at a random moment of the whole time, and soon after work was saved. Partial writes:
kills that left a temporary file, a table without a chunk, a chunk without its commit record, or statistics of an epoch
that is not marked as written."""


def main() -> None:
    """Kill jobs of one kind, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("jobs", choices=TITLES)
    parser.add_argument("--n", type=int, default=24, help="kills of each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: kill_and_resume(job, chosen.n, Random(f"{chosen.seed} {name}"))
            for name, job in make_jobs(chosen.jobs, chosen.only, Path(folder)).items()
        }
    columns = list(dict.fromkeys(column for counts in found.values() for column in counts))
    rows = [[name, *(counts[column] for column in columns)] for name, counts in {**found, "all": total(found)}.items()]
    write_page(chosen.out, TITLES[chosen.jobs], TEXTS[chosen.jobs], MOMENTS, table((chosen.jobs, *columns), rows))


def make_jobs(kind: str, only: str, root: Path) -> dict[str, Job]:
    """Make the jobs of a kind whose name contains a text, each with a folder of its own, and a teacher for them."""
    pictures = write_pictures(root / "data")
    if kind == "studies":
        folders = undisturbed, disturbed = root / "undisturbed", root / "disturbed"
        for folder in folders:
            folder.mkdir()
        write_study(undisturbed, pictures)
        assert start_study(undisturbed).wait().returncode == 0
        return {"study": Study(pictures, undisturbed, disturbed)}
    small: dict[str, Any] = small_settings(pictures)
    data = {key: small[key] for key in ("dataset", "image_size", "device", "precision")}
    teacher = train_teacher(TeacherConfig.load(**small, out=root / "teacher")).path
    jobs: dict[str, Job] = {}
    names = TRAININGS if kind == "trainings" else PRECOMPUTATIONS
    for number, name in enumerate(name for name in names if only in name):
        folder = root / str(number)
        folder.mkdir()
        if kind == "trainings":
            jobs[name] = make_training(name, small, teacher, folder)
        else:
            jobs[name] = Precomputation(name, data, teacher, folder, epochs=40)
    return jobs


def total(found: dict[str, Counter[str]]) -> Counter[str]:
    """Add up the counts of all jobs."""
    return sum(found.values(), Counter())


if __name__ == "__main__":
    main()
