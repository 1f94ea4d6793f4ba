"""Stage one: train a teacher, or load a trained one, and store its logits for the clean training images."""

import time
from collections.abc import Mapping
from pathlib import Path

from kdcache import discriminant, distributed, signals
from kdcache.accuracy import evaluate
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.find import find_answers
from kdcache.choices import SHIPPED
from kdcache.compute import Compute
from kdcache.config import TeacherConfig
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, problem
from kdcache.extensions import trust
from kdcache.losses import balanced_class_weights, cross_entropy
from kdcache.models import Network, build, checkpoint
from kdcache.models.initial import start_from
from kdcache.models.load import Found, find_network
from kdcache.models.sources import locate_named, shipped_teacher
from kdcache.optimization import Update
from kdcache.report.progress import Reporter
from kdcache.report.trackers import Tracked
from kdcache.report.training_curves import plot_training_curves
from kdcache.run.find import stores_of, weights_file
from kdcache.run.folder import EpochMetrics, FinishedRun
from kdcache.run.resolve import check_output, resolve_run
from kdcache.run.writer import RunWriter
from kdcache.setup import choose_compute, initial_network, load_data, with_epochs
from kdcache.training import StepResult, train_epochs
from kdcache.views import Batch, ViewPlan, Views

ACCURACY_GAP = 0.5
"""Percentage points by which a loaded network may differ from its published accuracy without a warning."""

__all__ = ["load_teacher", "train_teacher"]


def train_teacher(config: TeacherConfig, reporter: Reporter | None = None) -> FinishedRun:
    """Train a teacher with cross-entropy on cropped and flipped images, then store its logits for the clean ones.

    Parameters
    ----------
    config : TeacherConfig
    reporter : Reporter, optional
        Reports progress; silent by default.

    Returns
    -------
    FinishedRun
        The run folder, with the network and the store of its clean logits.

    Raises
    ------
    UsageError
        If the data or the run folder cannot be used; nothing has been written then.
    KdcacheError
        If the loss stops being finite; the network of the last complete epoch is kept.
    """
    reporter = reporter or Reporter()
    distributed.init(config.device)
    config, finished = resolve_run(config)
    if finished is not None:
        return finished
    compute = choose_compute(config)

    # The images as the network sees them, each epoch cropped and flipped anew.
    data = load_data(config)
    config = with_epochs(config, len(data.train))
    teacher, init = initial_network(config, data)
    data = data.rendered(teacher.rendering)
    plan = ViewPlan(len(data.train), data.image_size, data.card.padding, crop_flip=True, seed=config.seed)
    views = Views(data.train, plan, config.batch_size, compute.device)

    teacher = teacher.to(compute.device)
    if config.sync_batchnorm:
        teacher = distributed.convert_sync_batchnorm(teacher, compute.device)
    update = Update(config, compute, teacher)
    class_weights = None
    if config.balances_classes:
        class_weights = balanced_class_weights(data.train.labels, data.num_classes).to(compute.device)
    network = compute.compiled(teacher) if config.compile else teacher
    ddp_teacher = distributed.wrap_ddp(network, broadcast_buffers=True)

    def step(batch: Batch) -> StepResult:
        with compute.autocast():
            logits = ddp_teacher(batch.views)
        # DDP averages over processes, whose parts of the batch may differ in size.
        weight = distributed.world_size() * len(batch) / len(batch.global_positions)
        loss = weight * cross_entropy(logits, batch.labels, config.label_smoothing, class_weights)
        update(loss)
        return StepResult.of(loss, logits, batch.labels)

    # The run folder; a resumed run continues from its last checkpoint.
    with RunWriter(config, compute, data, init=init) as run, Tracked(run, reporter) as reporter:
        progress = run.restore({"teacher": teacher}, update)
        train_epochs(run, progress, update, views, step, compute, reporter)
        if distributed.is_main():
            plot_training_curves(run.metrics, run.folder.curves_file)
        return _store_clean_logits(run, update.evaluated, data, compute, reporter)


def load_teacher(
    weights: str | Path,
    config: TeacherConfig,
    model: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    reporter: Reporter | None = None,
    weights_entry: str | None = None,
    class_order: str | None = None,
    fit_head: bool = False,
) -> FinishedRun:
    """Make a run folder for a trained network: evaluate it, and store its logits for the clean training images.

    Parameters
    ----------
    weights : str or Path
        A run folder, a file, or a name, see `kdcache.models.sources.read_weights`.
    config : TeacherConfig
        Names the dataset and the run folder.
    model : str, optional
        Architecture; by default the one that the file names, or whose tensors have these names and shapes.
    mean, std : tuple of float, optional
        Normalization that the network was trained with; by default that of the weights, the network's library, or the
        dataset.
    reporter : Reporter, optional
    weights_entry : str, optional
        Name of the tensors to load, if the file has several networks; averaged (EMA) weights by default.
    class_order : str, optional
        Order of the classes in the weights: ``natural``, or a file with a name per line; by default the dataset's.
    fit_head : bool
        Take all but the last layer of the network `model`, whose classes may be others or none, and fit a last layer to
        the clean training images, see `kdcache.discriminant`.

    Returns
    -------
    FinishedRun
        Its only line of metrics is epoch 0: the evaluation of the network as loaded.

    Raises
    ------
    UsageError
        If the file cannot be read, or does not fit the network or the data.
    """
    reporter = reporter or Reporter()
    check_output(config, resumable=False)
    compute = choose_compute(config)
    data = load_data(config)
    weights = weights_file(str(weights))
    if fit_head:
        found = _find_backbone(weights, data, model, (mean, std, weights_entry, class_order))
    else:
        found = find_network(weights, data, model, mean, std, weights_entry, class_order)
    network, published, origin = found
    data, network = data.rendered(network.rendering), network.to(compute.device)
    if fit_head:
        discriminant.fit_head(network, data.train, compute)
    started = time.perf_counter()
    with RunWriter(config.model_copy(update={"model": network.name, "init": None}), compute, data) as run:
        accuracy = evaluate(network, data.test, compute)
        metrics = EpochMetrics(
            epoch=0,
            test_loss=accuracy.loss,
            test_top1=accuracy.top1,
            test_top5=accuracy.top5,
            seconds=time.perf_counter() - started,
        )
        run.end_epoch(metrics, network)
        beside = "" if published is None else f", published as {published:.2f} %"
        reporter.message(
            f"teacher {network.name} on {config.dataset} -> {run.path}: top-1 {accuracy.top1:.2f} %{beside}"
        )
        if published is not None and abs(published - accuracy.top1) > ACCURACY_GAP:
            reporter.message(
                "warning: measured and published accuracy differ by more than half a point. Was the network trained "
                "with a different normalization (--mean, --std), for another image size, or on other data?"
            )
        return _store_clean_logits(run, network, data, compute, reporter, origin)


def _find_backbone(weights: str, data: Dataset, model: str | None, others: tuple[object, ...]) -> Found:
    """Load a network of which all but the last layer is wanted."""
    if any(option is not None for option in others):
        expected = "no --mean, --std, --weights-entry and --class-order"
        raise UsageError(problem("--fit-head", expected=expected, got="one of them"))
    weights, model = locate_named(weights, model)
    path = shipped_teacher() if weights == SHIPPED else Path(weights)
    if checkpoint.is_kdcache_file(path):
        model = model or checkpoint.describe(path, checkpoint.metadata(path)).name
    if model is None:
        raise UsageError(problem("--fit-head", expected="the network's name with --model", got="none"))
    trust(model)
    card = data.card
    network = build(
        model, num_classes=data.num_classes, image_size=data.image_size, mean=card.mean, std=card.std, seed=0
    )
    start_from(network, weights, data, may_download=True, option="--weights")
    head = f"a linear discriminant of {len(data.train)} training images"
    return Found(network, None, {"weights": weights, "head": head})


def _store_clean_logits(
    run: RunWriter,
    network: Network,
    data: Dataset,
    compute: Compute,
    reporter: Reporter,
    loaded: Mapping[str, str] | None = None,
) -> FinishedRun:
    images, precision = run.config.image_settings, compute.precision
    found = find_answers(network, data, compute, stores_of(run.path), precision=precision, image_settings=images)
    answers = found.created()
    plan = ViewPlan(len(data.train), data.image_size, data.card.padding, crop_flip=False, seed=0)
    views = Views(data.train, plan, plan.samples, compute.device)
    cached_teacher = CachedTeacher(answers.teacher, views, store=answers.store)
    for done in cached_teacher.precompute_clean():
        reporter.precomputed(done, plan.samples)
        if signals.stop_requested():
            raise signals.Stopped
    return run.finish(**cached_teacher.pop_counts().all_reduced().as_metrics(), loaded=loaded)
