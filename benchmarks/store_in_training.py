"""What the store costs and saves in a student's step, what answers lose in it, and how large a forward should be.

python benchmarks/store_in_training.py --teacher RUN > docs/results/store_in_training.md
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import footer, spread
from kdcache.stages.student import Step, make_objective
from torch import Tensor

from kdcache import training
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.codec import Dense, TopK
from kdcache.answers.open import make_cached_teacher, open_store
from kdcache.answers.teacher import Teacher
from kdcache.answers.verify import codec_error
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.losses import kl_divergence
from kdcache.machine import keep_freed_memory
from kdcache.models.load import trained_network
from kdcache.run.folder import RunFolder
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.setup import fresh_network, load_data, plan_of
from kdcache.views import Batch, ViewMaker

REPEATS = 5


class Timed:
    """A cached teacher whose answers are timed."""

    def __init__(self, cached_teacher: CachedTeacher) -> None:
        self.cached_teacher, self.seconds = cached_teacher, 0.0

    def logits(self, batch: Batch) -> Tensor:
        """See `CachedTeacher.logits`."""
        started = time.perf_counter()
        answers = self.cached_teacher.logits(batch)
        self.seconds += time.perf_counter() - started
        return answers


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    chosen = parser.parse_args()
    keep_freed_memory()  # as the command line does
    config = StudentConfig.load(teacher=chosen.teacher, aug="cutmix-pick", epochs=1)
    compute, data = Compute.choose(), load_data(config)
    views = ViewMaker(data.train, plan_of(config, data), config.batch_size, compute.device)
    teacher = Teacher(trained_network(RunFolder(chosen.teacher).network_file, data), compute)
    with tempfile.TemporaryDirectory() as name:
        store = open_store(Path(name) / "store.zarr", teacher, data)
        filled = make_cached_teacher(teacher, views, store, "replay", 1)
        list(filled.precompute(1))
        rows = {"online": [], "from the store": []}
        for _ in range(REPEATS):
            for word, cached_teacher in (("online", CachedTeacher(teacher, views)), ("from the store", filled)):
                rows[word].append(epoch(config, data, views, cached_teacher, compute))
    print(f"""# The store in a student's step

ResNet8, CutMix-pick, batch {config.batch_size}, teacher {teacher.network.name}, {compute.precision}.
One epoch of {len(views.steps)} steps, medians (least, most) of {REPEATS}, in turn.
""")
    print("| answers | ms a step | of it the cached teacher, ms | share of the step |\n| --- | --- | --- | --- |")
    for word, found in rows.items():
        step, asking = ([1e3 * part[place] / len(views.steps) for part in found] for place in (0, 1))
        share = [100 * part[1] / part[0] for part in found]
        print(f"| {word} | {spread(step)} | {spread(asking, 3)} | {spread(share, 2)} % |")

    whole = truth(teacher, views)
    student = fresh_network(config, data).eval()
    with torch.inference_mode():
        other = torch.cat([student(batch.views) for batch in first(views)])
    print(f"""
## What answers lose

{len(whole)} answers about x and both candidates, in float32 from the teacher. KL of the stored answer from the whole
one at temperature 4, and how far the KL of an untrained student from it moves.
""")
    print("| format | bytes | KL, mean | KL, largest | student's KL moves, mean | largest | other first class |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for codec in (Dense("float32"), Dense("float16"), TopK("float16", 5), TopK("float16", 3), TopK("float16", 2)):
        error = codec_error(whole, codec, 4.0)
        stored = codec.decode(codec.encode(whole), whole.shape[1])
        kl_stored, kl_whole = (kl_divergence(other.double(), one.double(), 4.0) for one in (stored, whole))
        moved = (kl_stored - kl_whole).abs()
        size = sum(width * dtype.itemsize for width, dtype in codec.layout(whole.shape[1]).values())
        print(
            f"| {codec.name} | {size} | {error.mean_kl:.2g} | {error.max_kl:.2g} | {moved.mean():.2g} "
            f"| {moved.max():.2g} | {100 * error.argmax_changes:.2g} % |"
        )
    print(f"""
## How many rows a forward should have

Images a second of the teacher, medians (least, most) of {REPEATS}, and the largest difference of a logit from the
answers with 64 rows, the logits being up to {whole.abs().max():.0f}.

| rows | images/s | difference |
| --- | --- | --- |""")
    sample = torch.cat([batch.views for batch in first(views)])[:3072]
    teacher.rows = 64
    with_64 = teacher(sample)
    for size in (16, 32, 64, 128, 256, 512):
        teacher.rows, speeds = size, []
        for _ in range(REPEATS):
            started = time.perf_counter()
            found = teacher(sample)
            speeds.append(len(sample) / (time.perf_counter() - started))
        print(f"| {size} | {spread(speeds, 0)} | {(found - with_64).abs().max():.2g} |")
    print(footer())


def epoch(
    config: StudentConfig, data, views: ViewMaker, cached_teacher: CachedTeacher, compute: Compute
) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Train for an epoch: its seconds, and those of the cached_teacher."""
    student, timed = fresh_network(config, data), Timed(cached_teacher)
    step = Step(config, student, make_objective(config, student, cached_teacher, data), timed, compute)  # type: ignore[arg-type]
    shape = StatisticsShape(len(data.train), views.plan.slots, len(views.steps), step.losses)
    step.begin(EpochStatistics.empty(shape, compute.device))
    started = time.perf_counter()
    for _ in training.train_epoch(training.sgd(student, 0.05, 0.9, 5e-4), views.epoch(0), step, compute):
        pass
    return time.perf_counter() - started, timed.seconds


def first(views: ViewMaker, batches: int = 32) -> Iterator[Batch]:
    """Make the first batches of an epoch."""
    for _, batch in zip(range(batches), views.epoch(0), strict=False):
        yield batch


def truth(teacher: Teacher, views: ViewMaker) -> Tensor:
    """Ask the teacher in float32, whatever it computes in otherwise."""
    precise = Teacher(teacher.network, Compute(teacher.compute.device, "float32"))
    return torch.cat([precise(batch.views) for batch in first(views)])


if __name__ == "__main__":
    main()
