"""Stage one: train a teacher, or take a trained one, and fill the store of its answers to the clean views."""

import time
from pathlib import Path

from torch import Tensor

from kdcache import distributed, signals, training
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.config import TeacherConfig
from kdcache.datasets import Dataset
from kdcache.losses import cross_entropy
from kdcache.models import Network
from kdcache.report.progress import Reporter
from kdcache.report.training_curves import draw_training_curves
from kdcache.run.checkpoint import Progress
from kdcache.run.folder import EpochMetrics, FinishedRun
from kdcache.run.resolve import check_output, resolve_run
from kdcache.run.writer import RunWriter
from kdcache.setup import choose_compute, find_network, fresh_network, load_data, open_store, store_path
from kdcache.training import epoch_metrics
from kdcache.views import Batch, Plan, ViewMaker

WARNED_GAP = 0.5
"""Points by which the accuracy of a published network may differ from what it was published with."""

__all__ = ["adopt_teacher", "train_teacher"]


def train_teacher(config: TeacherConfig, reporter: Reporter | None = None) -> FinishedRun:
    """Train a teacher with cross-entropy on standard views, then ask it about every clean training image.

    Parameters
    ----------
    config : TeacherConfig
    reporter : Reporter, optional
        Hears of the progress; silent by default.

    Returns
    -------
    FinishedRun
        The run folder, with the network and the store of its clean logits.

    Raises
    ------
    UsageError
        Where the data or the run folder are not as they should be; nothing is written then.
    KdcacheError
        Where the loss stops being finite; the network of the last whole epoch is kept.
    """
    reporter = reporter or Reporter()
    distributed.init(config.device)
    config, finished = resolve_run(config)
    if finished is not None:
        return finished
    compute = choose_compute(config)
    data = load_data(config)
    teacher = fresh_network(config, data).to(compute.device)
    if config.sync_batchnorm:
        teacher = distributed.convert_sync_batchnorm(teacher, compute.device)
    plan = Plan(len(data.train), data.image_size, data.card.padding, crop_flip=True, seed=config.seed)
    views = ViewMaker(data.train, plan, config.batch_size, compute.device)
    optimiser = training.sgd(teacher, config.lr, config.momentum, config.weight_decay)
    trained = distributed.wrap_ddp(compute.compiled(teacher) if config.compile else teacher, broadcast_buffers=True)

    def loss_of(batch: Batch) -> Tensor:
        with compute.autocast():
            logits = trained(batch.views)
        return distributed.world_size() * len(batch) / len(batch.global_positions) * cross_entropy(logits, batch.labels)

    run = RunWriter(config, compute, data)
    progress = run.restore({"teacher": teacher}, optimiser)
    title = f"teacher {config.model} on {config.dataset} -> {run.path}"
    reporter.begin(title, config.epochs, len(data.train), run.path)
    with signals.defer_stop():
        for epoch in range(progress.epoch, config.epochs):
            started = time.perf_counter()
            training.set_learning_rate(optimiser, config.learning_rate(epoch))
            batches = views.epoch(epoch, progress.step)
            for event in training.train_epoch(optimiser, batches, loss_of, compute, progress.losses):
                reporter.step(event)
                if event.step < len(views.steps) and run.checkpoint_due():
                    run.save_checkpoint(Progress(epoch, event.step, event.losses))
            metrics = epoch_metrics(event, teacher, data, compute, config, epoch=epoch, started=started)
            run.end_epoch(metrics, teacher)
            reporter.end_epoch(metrics)
            progress = Progress(epoch + 1)
            run.save_checkpoint(progress)

    if distributed.is_main():
        draw_training_curves(run.metrics, run.folder.curves_file)
    return _fill_and_finish(run, teacher, data, compute)


def adopt_teacher(
    weights: str | Path,
    config: TeacherConfig,
    model: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    reporter: Reporter | None = None,
) -> FinishedRun:
    """Make a teacher's run folder from a trained network: evaluate it, and ask it about every clean training image.

    Parameters
    ----------
    weights : str or Path
        A ``model.safetensors`` that kdcache wrote, `SHIPPED` for the one that comes with it, a published checkpoint
        (see `kdcache.models.published.read`), or for a network of torchvision the name of its weights, which are
        fetched.
    config : TeacherConfig
        Names the dataset and the run folder.
    model : str, optional
        The network; by default the one that the file names, or whose tensors have these names and shapes.
    mean, std : tuple of float, optional
        Normalisation that the network was trained with; by default what the weights state, or the dataset's.
    reporter : Reporter, optional

    Returns
    -------
    FinishedRun
        Its one line of metrics is epoch 0: nothing was trained here.

    Raises
    ------
    UsageError
        Where the file cannot be read, or does not fit the network or the data.
    """
    reporter = reporter or Reporter()
    check_output(config)
    compute = Compute.choose(config.device, config.precision)
    data = load_data(config)
    network, published = find_network(weights, data, model, mean, std)
    network = network.to(compute.device)
    started = time.perf_counter()
    run = RunWriter(config.model_copy(update={"model": network.name}), compute, data)
    accuracy = training.evaluate(network, data.test, compute)
    metrics = EpochMetrics(
        epoch=0,
        test_loss=accuracy.loss,
        test_top1=accuracy.top1,
        test_top5=accuracy.top5,
        seconds=time.perf_counter() - started,
    )
    run.end_epoch(metrics, network)
    beside = "" if published is None else f", published as {published:.2f} %"
    reporter.message(f"teacher {network.name} on {config.dataset} -> {run.path}: top-1 {accuracy.top1:.2f} %{beside}")
    if published is not None and abs(published - accuracy.top1) > WARNED_GAP:
        reporter.message(
            "warning: that is more than half a point apart; was the network trained with another normalisation "
            "(--mean, --std), for another image size, or on other data?"
        )
    return _fill_and_finish(run, network, data, compute)


def _fill_and_finish(run: RunWriter, network: Network, data: Dataset, compute: Compute) -> FinishedRun:
    teacher = Teacher(network, compute)
    store = open_store(store_path(run.path), teacher, data)
    plan = Plan(len(data.train), data.image_size, data.card.padding, crop_flip=False, seed=0)
    cached_teacher = CachedTeacher(teacher, ViewMaker(data.train, plan, plan.samples, compute.device), store=store)
    for _ in cached_teacher.precompute_clean():
        if signals.stop_requested():
            raise signals.Stopped
    return run.finish(**cached_teacher.count().everywhere().as_metrics())
