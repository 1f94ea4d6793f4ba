"""KL ratio, hard images, longer training and augmentations, on cases worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdcache.analysis.augmentations import STUDENT_FREE, RunningStatistics, rank_augmentations, score_augmentation
from kdcache.analysis.curves import error_curves
from kdcache.analysis.estimates import MeanStd
from kdcache.analysis.groups import group_runs
from kdcache.analysis.hardness import measure_hardness
from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.analysis.kl_ratio import ratio_curve
from kdcache.analysis.teacher_std import std_of_mean_probability
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.run import statistics_store
from kdcache.run.folder import EpochMetrics
from kdcache.run.records import RunRecord
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.run.statistics_store import StatisticsReader, StatisticsStore, StoredEpoch


def run(number: int = 0, epochs: int = 4, top1: float | None = None, **settings: object) -> RunRecord:
    """Record of a student; unfinished without an accuracy."""
    config = StudentConfig(teacher=Path("t"), epochs=epochs, seed=number, **settings)  # type: ignore[arg-type]
    summary = None if top1 is None else {"last_top1": top1, "best_top1": top1 + 1, "epochs": epochs}
    metrics = tuple(EpochMetrics(epoch, 1.0, 1.0, 50.0 + number + epoch, 90.0) for epoch in (1, 2))
    return RunRecord(Path(f"run-{number}"), config, metrics, summary, {}, ())


def test_kl_ratio_over_normalized_iterations() -> None:
    # Two bins. A run of 4 steps: 1, 3 | 2, unknown. One of 2 steps: 5 | 6. So 1, 3, 5 and 2, 6.
    curve = ratio_curve("g", [np.array([1, 3, 2, np.nan]), np.array([5.0, 6.0])], bins=2)
    assert curve is not None
    assert (curve.at, curve.mean, curve.steps) == ((0.25, 0.75), (3.0, 4.0), 5)
    assert curve.std == pytest.approx((math.sqrt(8 / 3), 2.0))
    # The runs' own means are 2 and 5.5.
    assert (curve.overall.n, curve.overall.mean) == (2, 3.75)
    assert curve.overall.std == pytest.approx(3.5 / math.sqrt(2))
    assert ratio_curve("g", [np.array([np.nan]), np.array([])]) is None


def test_bins_without_steps_are_left_out() -> None:
    curve = ratio_curve("g", [np.array([1.5, 2.5])], bins=4)
    assert curve is not None
    assert (curve.at, curve.mean) == ((0.375, 0.875), (1.5, 2.5))


def epoch(number: int, d_x: list[float]) -> StoredEpoch:
    nothing = np.empty((0, len(d_x)), np.float32)
    return StoredEpoch(number, np.array(d_x, np.float32), nothing, nothing.astype(bool), np.empty(0), np.empty(0))


def test_images_that_stay_hard_and_images_that_become_hard() -> None:
    # Ten images, so one is hard: 9, 9, then 0, then 9 again. Image 5 was not seen in the second epoch.
    rising = [float(number) for number in range(10)]
    second = [*rising[:5], math.nan, *rising[6:]]
    third = [20.0, *rising[1:]]
    found = measure_hardness([epoch(0, rising), epoch(1, second), epoch(2, third), epoch(4, rising)])
    assert found is not None
    assert found.epochs == (0, 1, 2, 4)
    assert [(share.count, share.total) for share in found.stayed_hard] == [(1, 1), (0, 1), (0, 1)]
    assert [(share.count, share.total) for share in found.became_hard] == [(0, 9), (1, 9), (1, 9)]
    assert (found.always_hard.count, found.always_hard.total) == (0, 10)
    assert found.highest[:3] == ((9, 9.0), (8, 8.0), (7, 7.0))
    assert found.lowest[:2] == ((1, 1.0), (2, 2.0))
    assert dict(found.highest)[5] == 5.0  # a mean over the epochs in which it was seen
    assert found.most_forgotten == ((0, 1), (9, 1))
    assert found.median[0] == 4.5


def test_epochs_without_d_are_skipped() -> None:
    assert measure_hardness([epoch(0, [math.nan] * 4)]) is None
    assert measure_hardness([]) is None


def test_runs_are_grouped_by_everything_but_the_seed_and_named_by_what_differs() -> None:
    runs = [run(0), run(1, device="cpu"), run(0, aug="cutmix-pick"), run(0, temperature=2.0), run(2, view_seed=7)]
    groups = group_runs(runs)
    assert [len(one.runs) for one in groups] == [3, 1, 1]
    assert [one.name for one in groups] == [
        "resnet8 kd standard, temperature 4.0",
        "resnet8 kd cutmix-pick",
        "resnet8 kd standard, temperature 2.0",
    ]
    assert groups[0].by_epoch("test_top1") == [(1, MeanStd(3, 52.0, 1.0)), (2, MeanStd(3, 53.0, 1.0))]


def test_results_of_a_group_are_over_its_finished_runs() -> None:
    (found,) = group_runs([run(0, top1=70.0), run(1, top1=74.0), run(2)])
    assert (len(found.runs), len(found.finished)) == (3, 2)
    last = found.result("last_top1")
    assert (last.n, last.mean) == (2, 72.0)
    assert last.std == pytest.approx(math.sqrt(8))
    assert MeanStd.of([3.0, None, math.nan]) == MeanStd(1, 3.0, None)


def test_error_against_the_total_number_of_epochs() -> None:
    settings: list[dict[str, object]] = [{}, {"loss": "ce"}, {"aug": "none"}]
    runs = [
        run(seed, epochs, top1=60.0 + epochs + seed, **setting)
        for setting in settings
        for epochs in (8, 4)
        for seed in (0, 1)
    ]
    curves = error_curves([*runs, run(9, 16)])  # the last one is unfinished
    assert [(curve.name, curve.loss, curve.is_augmented) for curve in curves] == [
        ("resnet8 kd standard", "kd", True),
        ("resnet8 ce standard", "ce", True),
        ("resnet8 kd none", "kd", False),
    ]
    for curve in curves:
        assert [(point.epochs, point.last.n, point.last.mean) for point in curve.points] == [(4, 2, 35.5), (8, 2, 31.5)]
        assert [point.best.mean for point in curve.points] == [34.5, 30.5]
        assert curve.points[0].last.std == pytest.approx(math.sqrt(0.5))


def test_a_loaded_teacher_is_not_on_the_error_curves() -> None:
    summary = {"last_top1": 90.0, "best_top1": 90.0, "epochs": 0}
    assert error_curves([RunRecord(Path("t"), TeacherConfig(epochs=24), (), summary, {}, ())]) == []


def test_teacher_std_by_hand() -> None:
    # Class 0: 0, 3, 6 has a standard deviation of 3; class 1: 1, 1, 4 one of sqrt(3).
    found = std_of_mean_probability(np.array([[0.0, 1.0], [3.0, 1.0], [6.0, 4.0]]))
    assert found is not None
    assert found.value == pytest.approx((3 + math.sqrt(3)) / 2)
    assert std_of_mean_probability(np.zeros((2, 5))) is None


@settings(max_examples=30)
@given(arrays(np.float64, st.tuples(st.integers(3, 9), st.integers(1, 4)), elements=st.floats(0, 1, width=32)))
def test_the_jackknife_leaves_out_one_group_at_a_time(means: np.ndarray) -> None:
    found = std_of_mean_probability(means)
    assert found is not None
    one_by_one = [np.delete(means, place, 0).std(0, ddof=1).mean() for place in range(len(means))]
    np.testing.assert_allclose(found.jackknife, one_by_one, atol=1e-7)


def test_the_standard_error_matches_the_spread_of_repeated_draws() -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    found = [std_of_mean_probability(generator.normal(size=(60, 3))) for _ in range(300)]
    values, errors = zip(*((one.value, one.error) for one in found if one), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_diversity_by_hand() -> None:
    sure, other = torch.tensor([50.0, 0.0]), torch.tensor([0.0, 50.0])
    statistics = RunningStatistics(samples=4, classes=2, tracked=torch.tensor([3, 1, 0]), groups=2)
    for number, answers in enumerate(([sure, sure, sure], [other, sure, other])):
        statistics.add(number, torch.tensor([3, 1, 2]), torch.tensor([0, 0, 0]), torch.stack(answers))
    # Image 3 has two different predictions: ln 2; image 1 two equal ones: 0; image 2 is not tracked, image 0 not seen.
    diversity, images = statistics.diversity()
    assert images == 2
    assert diversity == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert (statistics.disagreements, statistics.views) == (2, 6)


def test_the_score_is_over_x_and_mixed_views_together() -> None:
    parts = [RunningStatistics(8, 2, torch.tensor([0]), groups=3) for _ in range(2)]
    rows = torch.arange(2)
    for step, size in enumerate((0.0, 1.0, 2.0)):
        for part, sign in zip(parts, (1.0, -1.0), strict=True):  # the logits of the two parts are opposite
            logits = torch.tensor([[sign * size, 0.0], [0.0, 0.0]])
            part.add(step, rows, torch.zeros(2, dtype=torch.int64), logits)
    together, alone = score_augmentation("both", parts), score_augmentation("one", parts[:1])
    assert together.std is not None
    assert alone.std is not None
    assert together.std.value == pytest.approx(0, abs=1e-7)
    assert alone.std.value > 0.05
    assert (together.groups, together.disagreement.total) == (3, 6)


def test_augmentations_are_ranked_for_a_teacher(teacher: Path) -> None:
    analyzed = load_analysis_inputs(str(teacher), device="cpu")
    found = rank_augmentations(analyzed, STUDENT_FREE, epochs=2, seed=1, group_size=20)
    by_name = {one.aug: one for one in found}
    assert by_name.keys() == set(STUDENT_FREE)
    values = [one.std.value for one in found if one.std]
    assert len(values) == len(found)
    assert values == sorted(values)
    # 90 images make four groups of 20 per epoch; the rest counts in all but the metric.
    assert {(one.groups, one.disagreement.total, one.images) for one in found} == {(8, 180, 90)}
    assert by_name["none"].diversity == pytest.approx(0, abs=1e-6)
    assert (by_name["cutmix"].diversity or 0) > (by_name["standard"].diversity or 0) > 0
    x = torch.cat([batch.views for batch in analyzed.views("standard", 1).epoch(0)])
    y = torch.cat([batch.labels for batch in analyzed.views("standard", 1).epoch(0)])
    wrong = int((analyzed.teacher(x).half().argmax(1) != y).sum())
    one_epoch = rank_augmentations(analyzed, ["standard"], epochs=1, seed=1, group_size=20)[0]
    assert one_epoch.disagreement.count == wrong


def test_sums_are_scored_and_augmentations_with_picking_are_refused(teacher: Path) -> None:
    analyzed = load_analysis_inputs(str(teacher), device="cpu")
    (found,) = rank_augmentations(analyzed, ["cutmix+cutout"], epochs=1, samples=40, group_size=20)
    assert (found.groups, found.disagreement.total) == (2, 80)
    for aug in ("cutmix-pick", "cutnix"):
        with pytest.raises(UsageError, match=aug):
            rank_augmentations(analyzed, [aug])


def test_augmentations_are_ranked_with_their_options(teacher: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        place = ["--teacher", str(teacher), "--device", "cpu", "--epochs", "1", "--out", str(tmp_path)]
        augs = [word for aug in ("cutmix", "standard", "cutmix+cutout") for word in ("--aug", aug)]
        return CliRunner().invoke(cli, ["analyze", "teacher", *place, *augs, *words])

    assert run("--aug-option", "cutmix.alpha=0.5", "--aug-option", "cutout.side=0.25").exit_code == 0
    found = json.loads((tmp_path / "augmentations.json").read_text())["augmentations"]
    assert {score["aug"] for score in found} == {
        "standard",
        "cutmix (cutmix,alpha=0.5)",
        "cutmix+cutout (cutmix,alpha=0.5; cutout,side=0.25)",
    }
    analyzed = load_analysis_inputs(str(teacher), device="cpu")
    by_hand = rank_augmentations(analyzed, ["randaugment"], epochs=1, augs={"randaugment": {"magnitude": 30}})[0]
    batch = next(analyzed.views("randaugment", 0, 90, ["randaugment.magnitude=30"]).epoch(0))
    wrong = analyzed.teacher(batch.mixed_views()).half().argmax(1) != batch.labels
    assert by_hand.disagreement.count == int(wrong.sum())
    assert by_hand.entropy != rank_augmentations(analyzed, ["randaugment"], epochs=1)[0].entropy
    shared = rank_augmentations(analyzed, ["cutmix"], epochs=1, augs=["cutmix.mode=batch"])[0]
    assert shared.aug == "cutmix (cutmix,mode=batch32)"  # the preset's batch size
    refused = run("--aug-option", "mixup.alpha=0.5", "--aug-option", "cutmix.alpha=0.7").exception
    assert isinstance(refused, UsageError)
    assert "--aug-option" in str(refused)
    with pytest.raises(UsageError, match=r"Leave out mixup.alpha, or add the augmentation"):
        rank_augmentations(analyzed, ["cutmix"], augs=["mixup.alpha=0.5"])


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    """Two of three epochs of a run with five samples, two mixed views each, and four steps."""
    shape = StatisticsShape(samples=5, slots=2, steps=4, losses=("kd",))
    store = StatisticsStore(tmp_path / "statistics.zarr", 3, shape)
    for number in range(2):
        figures = EpochStatistics.empty(shape, torch.device("cpu"))
        figures.d_x[:] = torch.arange(5) + number
        figures.d_mixed[1] = 0.5
        figures.picked[1, 2] = True
        figures.kl_ratio[:2] = 1.5
        store.write(number, figures)
    return tmp_path / "statistics.zarr"


def test_statistics_are_read_as_written(statistics: Path) -> None:
    reader = StatisticsReader.open(statistics)
    assert reader.epochs == 2
    first, second = reader
    assert second.d_x.tolist() == [1, 2, 3, 4, 5]
    assert np.isnan(first.d_mixed[0]).all()
    assert first.d_mixed[1].tolist() == [0.5] * 5
    assert first.picked.tolist() == [[False] * 5, [False, False, True, False, False]]
    assert first.kl_ratio[:2].tolist() == [1.5, 1.5]
    assert np.isnan(first.disagreements).all()


def test_statistics_are_the_same_however_many_epochs_are_read_together(
    statistics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [epoch.d_x.tolist() for epoch in StatisticsReader.open(statistics)]
    monkeypatch.setattr(statistics_store, "BYTES_IN_A_CALL", 1)
    assert [epoch.d_x.tolist() for epoch in StatisticsReader.open(statistics)] == together


def test_epochs_before_a_damaged_one_are_read(statistics: Path) -> None:
    for path in (statistics / "d_x" / "c" / "1").rglob("*"):
        path.write_bytes(b"")
    epochs = iter(StatisticsReader.open(statistics))
    assert next(epochs).d_x.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(KdcacheError, match="could not read epoch 2"):
        next(epochs)


def test_statistics_without_mixed_views(tmp_path: Path) -> None:
    shape = StatisticsShape(samples=3, slots=0, steps=1, losses=())
    store = StatisticsStore(tmp_path / "s.zarr", 1, shape)
    store.write(0, EpochStatistics.empty(shape, torch.device("cpu")))
    (found,) = StatisticsReader.open(tmp_path / "s.zarr")
    assert (found.d_mixed.shape, found.picked.shape) == ((0, 3), (0, 3))


def test_damaged_statistics_are_named_in_the_error(statistics: Path) -> None:
    chunk = next(path for path in (statistics / "d_x" / "c" / "1").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    reader = StatisticsReader.open(statistics)
    assert reader.epoch(0).d_x.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(KdcacheError, match="could not read epoch 2"):
        reader.epoch(1)
    with pytest.raises(KdcacheError, match=r"gone\.zarr"):
        StatisticsReader.open(statistics.with_name("gone.zarr"))
