"""Image files of any size: random resized crops, decoding, bad images, and training on them."""

import hashlib
import json
import math
import os
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcache.stages import train_student, train_teacher
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from kdcache import datasets
from kdcache.answers import budget
from kdcache.answers.space import StoreContents
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Dataset, load, pictures, read
from kdcache.datasets.check import check, hash_images
from kdcache.datasets.decoding import clean_view
from kdcache.datasets.pack import pack
from kdcache.datasets.pictures import Crops
from kdcache.errors import KdcacheError, UsageError
from kdcache.report.progress import Reporter
from kdcache.views import ViewPlan, Views
from kdcache.views.geometry import AREA, RATIO, random_resized_box
from tests.samples import BAD, refusal, spoil, write_imagenet

CPU = torch.device("cpu")
SIZE = 32
WORDS = st.integers(0, 2**64 - 1)
SIDES = st.integers(1, 2000)


# Random crops


@given(word=WORDS, width=SIDES, height=SIDES)
@settings(max_examples=300)
def test_a_crop_is_within_the_image_and_independent_of_the_flip_bit(word: int, width: int, height: int) -> None:
    left, top, right, bottom = random_resized_box(word, width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert random_resized_box(word ^ 1, width, height) == (left, top, right, bottom)


@given(word=WORDS, width=st.integers(200, 2000), height=st.integers(200, 2000))
@settings(max_examples=300)
def test_a_crop_has_an_allowed_area_and_aspect_ratio(word: int, width: int, height: int) -> None:
    left, top, right, bottom = random_resized_box(word, width, height)
    wide, high = right - left, bottom - top
    rounding = 1.02
    assert RATIO[0] / rounding < wide / high < RATIO[1] * rounding
    if RATIO[0] <= width / height <= RATIO[1]:  # otherwise it may be the largest crop of the center
        assert AREA[0] / rounding <= wide * high / (width * height) <= 1


def test_crops_are_the_same_on_every_machine() -> None:
    words = np.random.Philox(key=np.array([1, 2], np.uint64)).random_raw(5000)
    parts = [random_resized_box(int(word), 40 + place % 700, 30 + place % 611) for place, word in enumerate(words)]
    digest = hashlib.sha256(np.array(parts, np.int64).tobytes()).hexdigest()
    assert digest == "13fcd5bb681fb4c8d2aa78a7d4dccebbb6fb44deb08f4b8a7b8d20b76067da7f"


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 900), (120, 100)])
def test_crops_have_the_distribution_of_torchvisions(width: int, height: int) -> None:
    count = 4000
    words = np.random.Philox(key=np.array([7, 7], np.uint64)).random_raw(count)
    ours = np.array([random_resized_box(int(word), width, height) for word in words], float)
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    drawn = [v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(10), [image]) for _ in range(count)]
    theirs = np.array(
        [(one["left"], one["top"], one["left"] + one["width"], one["top"] + one["height"]) for one in drawn], float
    )
    for part in range(4):  # edges, then area and ratio: equal distributions (Kolmogorov-Smirnov)
        assert distance(ours[:, part], theirs[:, part]) < 0.043
    shapes = [np.stack([(p[:, 2] - p[:, 0]), (p[:, 3] - p[:, 1])]) for p in (ours, theirs)]
    assert distance(*(wide * high for wide, high in shapes)) < 0.043
    assert distance(*(np.round(wide / high, 2) for wide, high in shapes)) < 0.05


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance between two empirical distributions; above 0.043 by chance once in a thousand times."""
    places = np.union1d(first, second)
    shares = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_an_image_in_which_no_crop_fits_is_cropped_at_the_center() -> None:
    assert random_resized_box(12345, 1000, 10) == (493, 0, 506, 10)
    assert random_resized_box(12345, 10, 1000) == (0, 493, 10, 506)
    assert random_resized_box(0, 1, 1) == (0, 0, 1, 1)


# Views


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a set in ImageNet's shape: 3 classes, 72 + 9 pictures."""
    root = tmp_path_factory.mktemp("root")
    write_imagenet(root / "imagenet", train=24)
    return root


def small(root: Path, workers: int = 0) -> Dataset:
    return load("imagenet", root=root, image_size=SIZE, workers=workers)


def plan(samples: int, mixes: tuple[str, ...] = ("cutmix", "cutmix")) -> ViewPlan:
    return ViewPlan(samples, SIZE, None, crop_flip=True, seed=3, mixes=mixes)


def test_x_is_the_resized_and_flipped_crop_of_its_row(imagenet: Path) -> None:
    data = small(imagenet)
    drawn = plan(len(data.train))
    table = drawn.epoch(2)
    assert set(table.flip.tolist()) == {False, True}
    views = Views(data.train, drawn, 16, CPU).views(2, 0, range(20))
    files = sorted((imagenet / "imagenet/train").rglob("*.JPEG"))
    for position, view in enumerate(views):
        with Image.open(files[table.order[position]]) as picture:
            part = picture.crop(random_resized_box(int(table.crop[position]), *picture.size))
        expected = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        if table.flip[position]:
            expected = expected[:, ::-1]
        assert (view.permute(1, 2, 0).numpy() == expected).all()


def test_the_clean_view_equals_torchvisions_evaluation_transform(imagenet: Path) -> None:
    data = load("imagenet", root=imagenet, workers=0)
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    files = sorted((imagenet / "imagenet/train").rglob("*.JPEG"))
    for sample in (0, 5, 71):
        with Image.open(files[sample]) as picture:
            assert data.train.take(torch.tensor([sample]))[0].equal(transform(picture.convert("RGB")))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 32), st.integers(0, 9))
def test_clean_views_of_any_size_equal_torchvisions(width: int, height: int, size: int, more: int) -> None:
    pixels = np.random.Generator(np.random.Philox(width * height)).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels)
    expected = v2.Compose([v2.Resize(size + more), v2.CenterCrop(size)])(picture)
    assert np.array_equal(clean_view(picture, size, size + more), expected)


def test_views_do_not_depend_on_batch_size_or_workers(imagenet: Path) -> None:
    found = []
    for workers, batch_size in ((0, 64), (2, 64), (2, 7)):
        data = small(imagenet, workers)
        maker = Views(data.train, plan(len(data.train)), batch_size, CPU)
        batches = list(maker.epoch(1))
        found.append(
            [
                torch.cat([batch.views.view(3, len(batch), 3, SIZE, SIZE)[slot] for batch in batches])
                for slot in range(3)
            ]
        )
        order = [sample for batch in batches for sample in batch.samples.tolist()]
        assert order == maker.table(1).order.tolist()
    for one, other in pairwise(found):
        assert all(first.equal(second) for first, second in zip(one, other, strict=True))
    assert all(maker.views(1, slot, range(10, 50)).equal(found[0][slot][10:50]) for slot in range(3))


def test_each_image_of_a_step_is_decoded_once(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, decoded = small(imagenet), []
    of = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda data, name, *limits: decoded.append(name) or of(data, name, *limits))
    (batch,) = Views(data.train, plan(72, ("cutmix",) * 3), 72, CPU).epoch(0)
    assert len(batch.views) == 4 * 72
    assert sorted(decoded) == sorted(str(path) for path in (imagenet / "imagenet/train").rglob("*.JPEG"))


def test_workers_leave_the_global_generator_unchanged(imagenet: Path) -> None:
    state = torch.get_rng_state()
    for _ in Views(small(imagenet, workers=2).train, plan(72), 8, CPU).epoch(0):
        pass
    assert torch.get_rng_state().equal(state)


def test_an_interrupted_epoch_leaves_no_worker(imagenet: Path) -> None:
    def children() -> set[str]:
        found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        return set(found.read_text().split()) if found.exists() else set()

    data, before = small(imagenet, workers=2), children()
    epoch = Views(data.train, plan(72), 8, CPU).epoch(0)
    next(epoch)
    assert len(children() - before) in (0, 2)  # 0 where there is no /proc
    epoch.close()
    assert children() <= before


def test_random_resized_crops_are_too_many_for_an_index() -> None:
    drawn = plan(100)
    assert not budget.index_fits(drawn)
    assert budget.expected_new_views(drawn, 10, known=5) == pytest.approx(10)
    space = StoreContents(1000, 10**9)
    assert not budget.choose_policy("auto", drawn, 100, space).indexed
    assert "--cache standard" in refusal(lambda: budget.choose_policy("standard", drawn, 100, space))


def test_plans_of_image_files_nest_like_others() -> None:
    bare, whole, padded = (
        plan(72, ()).epoch(4),
        plan(72).epoch(4),
        ViewPlan(72, SIZE, 4, crop_flip=True, seed=3).epoch(4),
    )
    assert np.array_equal(bare.crop, whole.crop)
    for table in (whole, padded):
        assert np.array_equal(bare.order, table.order)
        assert np.array_equal(bare.flip, table.flip)


def test_the_view_table_of_imagenet_takes_less_than_100_mb_and_200_mb_at_its_peak() -> None:
    tracemalloc.start()
    try:
        table = ViewPlan(1281167, 224, None, crop_flip=True, seed=0, mixes=("cutmix", "cutmix")).epoch(0)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table.order) == 1281167
    assert held < 100e6
    assert peak < 200e6


def test_a_table_does_not_depend_on_the_number_of_rows_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan(1000, ("cutmix", "mixup")).epoch(2)
    monkeypatch.setattr("kdcache.views.plan.ROWS_PER_DRAW", 77)
    sliced = plan(1000, ("cutmix", "mixup")).epoch(2)
    for one, other in zip(whole.slots, sliced.slots, strict=True):
        assert np.array_equal(one.parameters, other.parameters)
        assert np.array_equal(one.lam, other.lam)


# Bad images


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    write_imagenet(tmp_path / "imagenet", train=6)
    spoil(tmp_path / "imagenet/train/n00000009")
    return tmp_path


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("zero.jpg", "empty"), ("text.jpg", "identify"), ("cut.jpg", "truncated"), ("deep.png", "8 bits per channel")],
)
def test_a_bad_image_raises_an_error_with_its_name(bad: str, reason: str, spoiled: Path) -> None:
    for other in set(BAD) - {bad}:
        (spoiled / "imagenet/train/n00000009" / other).unlink()
    for name in ("imagenet", f"folder:{spoiled}/imagenet"):

        def walk(name: str = name) -> None:
            data = load(name, root=spoiled, image_size=SIZE, workers=2)
            for _ in Views(data.train, plan(len(data.train), ()), 8, CPU).epoch(0):
                pass

        message = refusal(walk)
        assert f"train/n00000009/{bad}" in message
        assert reason in message


def test_bad_images_are_left_out_and_counted(spoiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("imagenet", f"folder:{spoiled}/imagenet"):
        data = load(name, root=spoiled, image_size=SIZE, on_bad_image="skip")
        assert (len(data.train), data.skipped) == (19, len(BAD))
        assert data.train.labels.tolist() == [0] * 6 + [1] * 7 + [2] * 6
        assert "4 images" in caplog.text
        (line,) = (line for line in caplog.messages if "left out" in line)
        assert all(name in line for name in BAD)
        caplog.clear()
        ink = data.train.take(torch.tensor([6]))  # cmyk.jpg comes before n00000009_0.JPEG
        assert (ink.float().mean((0, 2, 3)) - torch.tensor([254.0, 0.0, 0.0])).abs().max() < 8
        (spoiled / "imagenet/train/n00000009/zero.jpg").touch()


def test_a_dataset_is_checked_and_packed_without_its_bad_images(spoiled: Path) -> None:
    problems = check(f"folder:{spoiled}/imagenet").problems
    assert sorted(Path(line.split(":")[0]).name for line in problems) == sorted(BAD)
    data = read("imagenet", root=spoiled, image_size=SIZE)
    assert len(hash_images(data, decode_all=True)) == len(BAD)
    pack(datasets.without_bad_images(data), spoiled / "x.h5")
    unpacked = load("imagenet", root=spoiled, image_size=SIZE, on_bad_image="skip")
    packed = load(f"hdf5:{spoiled}/x.h5")
    assert packed.train.fingerprint == unpacked.train.fingerprint
    assert packed.train.take(torch.arange(19)).equal(unpacked.train.take(torch.arange(19)))


def test_a_class_of_only_bad_images_is_refused(tmp_path: Path) -> None:
    write_imagenet(tmp_path, train=1, val=1)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        path.write_bytes(b"")
    assert "at least one" in refusal(lambda: load(f"folder:{tmp_path}", on_bad_image="skip"))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_a_sound_image_is_refused(part: str, tmp_path: Path) -> None:
    write_imagenet(tmp_path, train=2, val=2)
    for path in (tmp_path / part / "n00000009").iterdir():
        path.write_bytes(b"")
    assert refusal(lambda: load(f"folder:{tmp_path}", on_bad_image="skip")).endswith("got none of n00000009")


def test_an_image_that_vanishes_is_a_failure_at_work(tmp_path: Path) -> None:
    data = read(f"folder:{write_imagenet(tmp_path, train=2, val=2)}")
    data.hash()
    (tmp_path / "train" / "n00000009" / "n00000009_0.JPEG").unlink()
    with pytest.raises(KdcacheError) as caught:
        data.train.take(torch.arange(len(data.train)))
    assert (caught.value.exit_code, "No such file" in str(caught.value)) == (1, True)


# Training


def settings_of(name: str, root: Path, out: Path) -> dict[str, object]:
    return {
        **{"dataset": name, "data_root": root, "image_size": SIZE, "model": "resnet8", "epochs": 2, "batch_size": 24},
        **{"device": "cpu", "precision": "float32", "out": out, "on_bad_image": "skip"},
    }


def test_a_refused_training_says_how_to_go_on_and_leaves_no_folder_without_a_network(spoiled: Path) -> None:
    given = {**settings_of("imagenet", spoiled, spoiled / "run"), "epochs": 1, "workers": 0}
    config = TeacherConfig.load("imagenet", **given)
    strict = config.model_copy(update={"on_bad_image": "error"})
    remedy = " Delete it, or leave out all that cannot be decoded with --on-bad-image skip."
    assert refusal(lambda: train_teacher(strict)).endswith(remedy)
    assert not (spoiled / "run").exists()
    found = check("imagenet", root=spoiled, image_size=SIZE)
    assert (found.bad, len(found.problems)) == (len(BAD), len(BAD) + 2)
    message = refusal(lambda: train_teacher(strict))  # all of them, which are known now
    assert all(f"n00000009/{name}" in message for name in BAD)
    assert message.endswith("with --on-bad-image skip.")
    assert not (spoiled / "run").exists()

    class Refusing(Reporter):
        def end_epoch(self, metrics: object) -> None:
            raise UsageError("after an epoch")

    assert refusal(lambda: train_teacher(config, Refusing())) == "after an epoch"
    assert (spoiled / "run" / "model.safetensors").exists()


def test_folder_and_packed_file_give_the_same_weights_and_share_a_store(spoiled: Path) -> None:
    pack(datasets.without_bad_images(read("imagenet", root=spoiled, image_size=SIZE)), spoiled / "x.h5")
    weights, asked = [], []
    teachers = []
    for number, (name, workers) in enumerate((("imagenet", 2), (f"hdf5:{spoiled}/x.h5", 0))):
        given = {**settings_of(name, spoiled, spoiled / f"teacher{number}"), "workers": workers, "epochs": 1}
        teachers.append(train_teacher(TeacherConfig.load("imagenet", **given)).path)
        weights.append(load_file(teachers[-1] / "model.safetensors"))
        given |= {"teacher": teachers[0], "aug": "cutmix-pick", "epochs": 2, "out": spoiled / f"student{number}"}
        run = train_student(StudentConfig.load("imagenet", **given))
        weights.append(load_file(run.path / "model.safetensors"))
        asked.append((run.summary["teacher_forwards"], run.summary["cache_hits"]))
        assert run.summary["skipped_images"] == (len(BAD) if number == 0 else 0)
    for one, other in ((0, 2), (1, 3)):
        assert all(torch.equal(tensor, weights[other][key]) for key, tensor in weights[one].items())
    assert asked == [(19 * 3 * 2, 0), (0, 19 * 3 * 2)]


def test_the_best_epoch_is_selected_on_the_validation_set_if_there_is_one(imagenet: Path, tmp_path: Path) -> None:
    given = {**settings_of(f"folder:{imagenet}/imagenet", imagenet, tmp_path / "run"), "epochs": 4, "lr": 0.02}
    run = train_teacher(TeacherConfig.load(**given, val_fraction=0.25))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["val_top1"])
    assert run.summary["best_on"] == "validation"
    assert run.summary["best_epoch"] == best["epoch"]
    assert run.summary["best_top1"] == best["test_top1"]
    assert all(math.isfinite(line["val_loss"]) and line["val_loss"] != line["test_loss"] for line in lines)
    plain = train_teacher(TeacherConfig.load(**{**given, "out": tmp_path / "plain", "epochs": 1}))
    assert plain.summary["best_on"] == "test"


def test_images_in_memory_have_no_random_resized_crops() -> None:
    data = load("fashion-mini")
    with pytest.raises(UsageError):
        data.train.render(torch.tensor([0]), [None], Crops(np.zeros(1, np.uint64), random_resized_box))
