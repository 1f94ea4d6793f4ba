"""Images without labels: how they are read, what trains on them, and what is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from click.testing import CliRunner
from kdcache.stages import precompute_answers, train_student
from torch import Tensor
from torch.nn import functional

from kdcache import datasets
from kdcache.answers.store import AnswerStore
from kdcache.bundle.quantize import calibration_images, training_views
from kdcache.choices import CRITERIA, LOSSES
from kdcache.cli import cli
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.datasets import Dataset, reading
from kdcache.datasets.pack import pack
from kdcache.datasets.packed import FORMAT, VERSION
from kdcache.losses import ViewOutputs, crld_loss, cross_entropy, dkd_loss, labelled_share, mixed_cross_entropy
from kdcache.register import register_loss, register_pick
from kdcache.run.folder import FinishedRun
from kdcache.run_data import load_run_data
from kdcache.setup import data_size, load_data, make_plan
from kdcache.stores import verify_store
from kdcache.teachers import open_cached_teacher
from kdcache.views import Views
from kdcache.views.batch import hard_labels
from tests.answers import stored
from tests.processes import outcome
from tests.samples import noise, refusal, spoil, write_unlabelled

Settings = dict[str, Any]

LABELLED, EXTRA = 90, 24


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without labels."""
    return write_unlabelled(tmp_path_factory.mktemp("extra") / "images", EXTRA)


def load(pictures: Path, extra: Path, **settings: Any) -> Dataset:
    return datasets.load(f"folder:{pictures}", image_size=32, crop="padded", unlabelled=f"folder:{extra}", **settings)


def test_unlabelled_images_come_after_the_others_and_are_in_the_fingerprint(pictures: Path, extra: Path) -> None:
    alone, data = datasets.load(f"folder:{pictures}", image_size=32, crop="padded"), load(pictures, extra)
    assert data.train.labels.tolist() == [*alone.train.labels.tolist(), *[-1] * EXTRA]
    assert data.num_unlabelled == EXTRA
    assert data.train.fingerprint != alone.train.fingerprint
    assert data.test.fingerprint == alone.test.fingerprint
    every = torch.arange(LABELLED + EXTRA)
    images = data.train.take(every)
    assert images[:LABELLED].equal(alone.train.take(every[:LABELLED]))
    names = sorted(str(path.relative_to(extra)) for path in extra.rglob("*.png"))
    for row, name in enumerate(names, start=LABELLED):
        assert images[row].equal(datasets.pictures.read_image(extra / name, 32))


def test_images_that_are_not_held_in_memory_are_the_same(
    pictures: Path, extra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load(pictures, extra, train_fraction=0.5).train
    # One byte less than the held images take.
    monkeypatch.setattr(reading, "MAX_BYTES_IN_MEMORY", 3 * 32 * 32 * len(held) - 1)
    decoded = load(pictures, extra, train_fraction=0.5).train
    assert held.images is not None
    assert decoded.images is None
    samples = torch.tensor([60, 3, 46, 44, 45])
    assert decoded.take(samples).equal(held.take(samples))
    assert decoded.fingerprint == held.fingerprint
    assert decoded.pictures is not None
    assert decoded.pictures.source.name(100).startswith(str(extra))


def test_fractions_are_of_the_labelled_images(pictures: Path, extra: Path) -> None:
    data = load(pictures, extra, val_fraction=0.2, train_fraction=0.5)
    assert (len(data.train) - data.num_unlabelled, data.num_unlabelled) == (36, EXTRA)
    assert data.val is not None
    assert data.val.labels.min() == 0
    data = load(pictures, extra, train_fraction=0.0)
    assert len(data.train) == data.num_unlabelled == EXTRA


def test_images_in_two_sets_are_reported(pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdcache")
    shutil.copytree(pictures, tmp_path / "copy")
    load(pictures, tmp_path / "copy", val_fraction=0.2)
    found = [(record.levelname, record.message) for record in caplog.records]
    unseen = ": the accuracy on them is not that on unseen images"
    assert ("WARNING", f"30 of the 120 unlabelled images are test images too{unseen}") in found
    assert ("WARNING", f"18 of the 120 unlabelled images are validation images too{unseen}") in found
    assert ("INFO", "72 of the 120 unlabelled images are labelled training images too") in found
    assert ("INFO", "training images: 72 with labels, 120 without") in found


def test_bad_images_are_left_out_or_an_error(pictures: Path, extra: Path, tmp_path: Path) -> None:
    shutil.copytree(extra, tmp_path / "images")
    spoil(tmp_path / "images")
    with pytest.raises(datasets.reading.UsageError, match="cut"):
        load(pictures, tmp_path / "images")
    data = load(pictures, tmp_path / "images", on_bad_image="skip")
    assert (data.num_unlabelled, data.skipped) == (EXTRA + 1, 4)


def test_unlabelled_images_of_packed_files_and_beside_arrays(
    pictures: Path, extra: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdcache")
    pack(datasets.read(f"folder:{pictures}", image_size=32), tmp_path / "pictures.h5")
    packed = f"hdf5:{tmp_path / 'pictures.h5'}"
    beside = datasets.load("fashion-mini", train_fraction=0.01, unlabelled=packed)
    assert beside.train.pictures is None
    assert beside.num_unlabelled == LABELLED
    (tmp_path / "test").mkdir()
    test = datasets.load("fashion-mini").test
    for number in (3, 4):
        array = test.take(torch.tensor([number]))[0].permute(1, 2, 0).numpy()
        datasets.pictures.Image.fromarray(array).save(tmp_path / "test" / f"{number}.png")
    datasets.load("fashion-mini", train_fraction=0.01, unlabelled=f"folder:{tmp_path / 'test'}")
    assert "2 of the 2 unlabelled images are test images too" in caplog.text
    own = load(pictures, extra)
    again = datasets.load(packed, image_size=32, crop="padded", unlabelled=f"folder:{extra}")
    assert again.train.fingerprint == own.train.fingerprint
    message = refusal(lambda: datasets.load(packed, image_size=32, unlabelled=f"folder:{tmp_path / 'none'}"))
    assert "none: got No such file or directory" in message
    (tmp_path / "none").mkdir()
    assert "at least one, got none" in refusal(lambda: load(pictures, tmp_path / "none"))


def test_arrays_of_another_size_are_refused(tmp_path: Path) -> None:
    files = []
    for size in (32, 48):
        files.append(f"hdf5:{tmp_path / str(size)}.h5")
        with h5py.File(tmp_path / f"{size}.h5", "w") as file:
            file.attrs.update(format=FORMAT, version=VERSION, class_names=["a", "b"])
            for part in ("train", "test"):
                file[f"{part}/images"], file[f"{part}/labels"] = noise(4, size, size, 3), [0, 1, 0, 1]
    message = refusal(lambda: datasets.load(files[0], unlabelled=files[1]))
    assert f"image size of --unlabelled {files[1]}: expected 32, as in {files[0]}, got 48" in message


def test_the_test_images_of_a_run_need_no_unlabelled_ones(
    trained: tuple[Settings, FinishedRun], extra: Path, tmp_path: Path
) -> None:
    _, run = trained
    moved = extra.rename(tmp_path / "moved")
    try:
        assert load_run_data(run, split="test").num_unlabelled == 0
        place = f"folder:{moved}"
        assert load_run_data(run, split="test", unlabelled=place).num_unlabelled == EXTRA  # which are checked then
        message = refusal(lambda: load_run_data(run))
        assert "--unlabelled folder:" in message
        assert "name their place with --unlabelled" in message
        data, left_out = calibration_images(run)
        assert data.num_unlabelled == 0
        assert left_out is not None
        assert left_out.startswith("calibrated on labelled images alone, because of this: --unlabelled folder:")
        assert calibration_images(run, unlabelled=place)[0].num_unlabelled == EXTRA
        words = ["cache", "verify", str(run.config.teacher), "--store", str(run.config.store), "--device", "cpu"]
        verified = CliRunner().invoke(cli, [*words, "--samples", "3", "--unlabelled", place])
        assert verified.exit_code == 0, verified.output
        evaluated = CliRunner().invoke(cli, ["evaluate", str(run.path), "--device", "cpu"])
        assert evaluated.exit_code == 0, evaluated.output
    finally:
        moved.rename(extra)
    assert load_run_data(run).num_unlabelled == EXTRA
    data, left_out = calibration_images(run)
    assert left_out is None
    whole = make_plan(run.config, data)
    seen = next(Views(data.train, whole, 32, torch.device("cpu")).epoch(0))
    assert (seen.labels == -1).any()
    assert next(training_views(whole, data)).equal(seen.views.round().byte())


def test_a_place_of_unlabelled_images_is_refused_where_there_are_none(teacher: Path) -> None:
    message = refusal(lambda: load_run_data(FinishedRun(teacher), unlabelled="folder:x"))
    assert message == f"--unlabelled: expected no value for {teacher}, which has no images without labels, got one"
    store = AnswerStore(str(stored(teacher)))
    message = refusal(lambda: [*verify_store(FinishedRun(teacher), store, unlabelled="folder:x")])
    assert "which has no images without labels" in message


def test_a_bad_unlabelled_image_is_not_counted(extra: Path, tmp_path: Path) -> None:
    shutil.copytree(extra, tmp_path / "images")
    spoil(tmp_path / "images")
    given = {"unlabelled": f"folder:{tmp_path / 'images'}", "on_bad_image": "skip"}
    config = StudentConfig.load(dataset="fashion-mini", **given)
    assert data_size(config).samples == len(load_data(config).train)


class Own:
    """A loss that may read labels."""


def first(candidates: Any) -> Tensor:
    """A criterion that may read labels."""
    raise NotImplementedError


@pytest.fixture
def registered() -> Iterator[None]:
    """Register the code above, and let no other test see its names."""
    register_loss("own-loss", reads="logits")(Own)
    register_pick("own-pick", teacher=False, student=False)(first)
    yield
    del LOSSES["own-loss"], CRITERIA["own-pick"]
    LOSSES._own.clear()
    CRITERIA._own.clear()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ce"}, "--unlabelled: expected no value with --loss ce, which is not trained on images without"),
        ({"alpha": 0}, "--unlabelled: expected no value with --loss kd --alpha 0"),
        ({"loss": "crd+kd"}, "--unlabelled: expected no value with --loss crd, which needs the label of every image"),
        ({"loss": "rld"}, "--unlabelled: expected no value with --loss rld, which needs"),
        ({"loss": "python:tests.test_unlabelled:Own"}, "--unlabelled: expected no value with --loss python:"),
        ({"aug": "cutmix", "pick": "python:tests.test_unlabelled:first"}, "no value with --pick python:"),
        ({"unlabelled": "images"}, "--unlabelled: expected one of folder:PATH, hdf5:FILE, got images"),
        ({"unlabelled": None, "train_fraction": 0}, "--unlabelled: expected images, since --train-fraction 0"),
    ],
)
def test_what_needs_labels_is_refused(settings: Settings, message: str) -> None:
    assert message in refusal(lambda: StudentConfig.load(**{"unlabelled": "folder:x", **settings}))


def test_a_teacher_has_no_unlabelled_images() -> None:
    assert "no such setting" in refusal(lambda: TeacherConfig.load(unlabelled="folder:x"))
    assert "trained on labels" in refusal(lambda: TeacherConfig.load(train_fraction=0))


def rows(*shape: int) -> Tensor:
    return torch.from_numpy(noise(*shape)).double() / 64


def test_cross_entropy_is_a_mean_over_the_labelled_rows() -> None:
    logits, weights = rows(5, 3).requires_grad_(), torch.tensor([0.5, 1.0, 2.0])
    labels, partners = torch.tensor([2, -1, 0, 1, -1]), torch.tensor([0, 1, -1, 2, -1])
    lam, known, both = torch.tensor([0.1, 1.0, 0.4, 0.8, 0.5]), labels >= 0, (labels >= 0) & (partners >= 0)
    for how in ((0.0, None), (0.1, weights)):
        found = cross_entropy(logits, labels, *how, labelled_share(labels))
        torch.testing.assert_close(found, cross_entropy(logits[known], labels[known], *how))
        mixed = labels, partners, lam
        found = mixed_cross_entropy(logits, *mixed, *how, labelled_share(hard_labels(*mixed)))
        kept = (column[both] for column in mixed)
        torch.testing.assert_close(found, mixed_cross_entropy(logits[both], *kept, *how))
    none = torch.full((5,), -1)
    nothing = cross_entropy(logits, none, labelled_share=labelled_share(none))
    assert nothing == 0
    assert torch.autograd.grad(nothing, logits)[0].eq(0).all()


def test_a_mixed_label_is_known_if_both_labels_are() -> None:
    labels, partners = torch.tensor([2, 2, 2, -1, -1, 1]), torch.tensor([1, 1, -1, 1, 1, -1])
    lam = torch.tensor([0.6, 0.5, 0.6, 0.4, 1.0, 0.0])
    assert hard_labels(labels, partners, lam).tolist() == [2, 1, -1, -1, -1, -1]


def test_the_target_class_of_an_unlabelled_row_is_that_of_the_teacher() -> None:
    student, teacher, labels = rows(4, 3), rows(3, 4).T, torch.tensor([1, -1, 0, -1])
    x = ViewOutputs(student, teacher, None, labels, torch.arange(4), labelled_share=labelled_share(labels))
    first = teacher.argmax(1)
    assert x.target_classes("teacher").tolist() == [1, first[1], 0, first[3]]
    mixed = ViewOutputs(
        *(student, teacher, None, labels, torch.arange(4)),
        partner_labels=torch.tensor([-1, 1, 2, -1]),
        lam=torch.tensor([0.9, 0.9, 0.3, 0.4]),
        labelled_share=torch.tensor(0.25),
    )
    assert mixed.target_classes("label").tolist() == [first[0], first[1], 2, first[3]]
    assert mixed.target_classes("teacher").tolist() == first.tolist()
    assert dkd_loss(student, teacher, x.target_classes("teacher"), 4.0).isfinite()


def test_losses_with_a_cross_entropy_of_their_own_leave_unlabelled_rows_out() -> None:
    weak, strong, labels = (rows(4, 3), rows(3, 4).T), (rows(2, 6).view(4, 3), rows(6, 2).view(4, 3)), [1, -1, 0, -1]
    share = torch.tensor(0.5)
    found = crld_loss(weak, strong, torch.tensor(labels), None, share)
    known = torch.tensor([0, 2])
    without = crld_loss(weak, strong, torch.full((4,), -1), None, torch.tensor(0.0))
    expected = sum(functional.cross_entropy(view[0][known], torch.tensor([1, 0])) for view in (weak, strong))
    torch.testing.assert_close(found - without, expected)


@pytest.fixture(scope="module")
def trained(
    small: Settings, teacher: Path, extra: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, FinishedRun]:
    """Settings and run of a student with unlabelled images."""
    root = tmp_path_factory.mktemp("trained")
    settings = {**small, "teacher": teacher, "unlabelled": f"folder:{extra}", "store": str(root / "store.zarr")}
    settings |= {"aug": "cutmix", "cache": "replay"}
    precomputed = precompute_answers(StudentConfig.load(**settings))
    assert precomputed.teacher_forwards == 2 * (LABELLED + EXTRA)
    return settings, train_student(StudentConfig.load(**settings, out=root / "run"))


def test_a_student_is_trained_on_stored_answers_to_unlabelled_images(
    trained: tuple[Settings, FinishedRun], teacher: Path
) -> None:
    settings, run = trained
    assert (run.summary["labelled_images"], run.summary["unlabelled_images"]) == (LABELLED, EXTRA)
    assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, 2 * (LABELLED + EXTRA))
    checks = [*verify_store(FinishedRun(teacher), AnswerStore(str(settings["store"])), samples=5)]
    assert sum(check.compared for check in checks) > 0
    assert max(check.max_error for check in checks) < 0.01
    assert data_size(StudentConfig.load(**settings)).samples == LABELLED + EXTRA


def test_disagreement_is_counted_over_the_known_labels(trained: tuple[Settings, FinishedRun]) -> None:
    settings, run = trained
    config, cpu = StudentConfig.load(**settings), Compute(torch.device("cpu"), "float32")
    data = load_data(config)
    views = Views(data.train, make_plan(config, data), 32, cpu.device)
    cached_teacher, known, disagreeing = open_cached_teacher(config, data, views, cpu), 0, 0
    for batch in views.epoch(0):
        both = (batch.labels >= 0) & (batch.partner_labels >= 0)
        wrong = cached_teacher.logits(batch, first=1).argmax(1) != batch.mixed_labels()
        known, disagreeing = known + int(both.sum()), disagreeing + int((both & wrong).sum())
    assert 0 < disagreeing < known < LABELLED
    assert run.read_metrics()[0].label_disagreement == pytest.approx(disagreeing / known)


def test_training_accuracy_is_that_on_the_labelled_images(trained: tuple[Settings, FinishedRun]) -> None:
    top1 = trained[1].read_metrics()[0].train_top1
    assert top1 is not None
    correct = top1 / 100 * LABELLED
    assert correct == pytest.approx(round(correct))
    assert round(correct) % 15 != 0  # else it might be a share of all images


def test_only_the_images_count_with_alpha_1(small: Settings, teacher: Path, pictures: Path, tmp_path: Path) -> None:
    settings = {**small, "teacher": teacher, "alpha": 1, "cache": "off", "aug": "cutmix-pick"}
    with_labels = train_student(StudentConfig.load(**settings, out=tmp_path / "labelled"))
    without = {**settings, "train_fraction": 0, "unlabelled": f"folder:{pictures / 'train'}"}
    alone = train_student(StudentConfig.load(**without, out=tmp_path / "alone"))
    assert outcome(alone.path)["network"] == outcome(with_labels.path)["network"]
    assert alone.summary["labelled_images"] == 0
    assert alone.read_metrics()[0].label_disagreement is None
    with_cross_entropy = StudentConfig.load(**{**without, "alpha": 0.9}, out=tmp_path / "refused")
    message = refusal(lambda: train_student(with_cross_entropy))
    assert "weight of cross-entropy: expected 0 without labels" in message
    assert "--alpha 1" in message


def test_the_size_of_a_named_dataset_is_known_without_reading_it(extra: Path) -> None:
    config = StudentConfig.load(dataset="cifar100", unlabelled=f"folder:{extra}")
    assert isinstance(config, TrainingConfig)
    assert data_size(config).samples == 50_000 + EXTRA
