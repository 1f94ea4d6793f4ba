"""A size for each network: one plan of views, rendered for the teacher and for the student."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcache.stages import precompute_answers, train_student, train_teacher
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import v2

from kdcache.cards import Rendering
from kdcache.choices import MIXES
from kdcache.cli import cli
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Dataset, load, pictures
from kdcache.models import build, checkpoint
from kdcache.models.load import find_network
from kdcache.models.published import clean_crop_of
from kdcache.run.find import stores_of
from kdcache.run.folder import FinishedRun
from kdcache.run_data import load_run_data
from kdcache.setup import initial_network, load_data, make_plan, make_plan_for_size
from kdcache.teachers import open_cached_teacher
from kdcache.views import ViewPlan, Views, apply
from kdcache.views.apply import apply_mix
from kdcache.views.geometry import random_resized_box
from kdcache.views.mixes import cutmix, draw_cutmix, draw_rows, find_mix
from kdcache.views.scaling import axis_coverage, scaled_cutmix
from tests.samples import refusal, write_imagenet

Settings = dict[str, Any]

CPU = torch.device("cpu")
LARGE, SMALL, THIRD = 48, 32, 40
SAMPLES = 24


# Boxes

SIZES = st.integers(32, 384)


def drawn_boxes(rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_cutmix(np.random.Philox(size).random_raw(2 * rows).reshape(-1, 2), size)


@settings(max_examples=15)
@given(SIZES, SIZES)
def test_a_box_has_the_same_share_at_every_size(size: int, side: int) -> None:
    boxes, lam = drawn_boxes(10_000, size)
    rows, columns = (axis_coverage(boxes[:, edges], size, side) for edges in (slice(0, 2), slice(2, 4)))
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    # In parts of a pixel over `size`, the sides are exactly those of the box.
    assert (rows.sum(1).numpy() == height.astype(np.int64) * side).all()
    assert (columns.sum(1).numpy() == width.astype(np.int64) * side).all()
    assert ((rows >= 0) & (rows <= size)).all()
    share = rows.double().sum(1) * columns.double().sum(1) / (size * side) ** 2
    assert np.abs(1 - share.numpy() - lam).max() < 1e-7


@settings(max_examples=15)
@given(SIZES, SIZES)
def test_the_pixels_of_a_box_have_its_share_to_rounding(size: int, side: int) -> None:
    boxes, lam = drawn_boxes(12, size)
    black = torch.zeros(12, 3, side, side, dtype=torch.uint8)
    mixed = scaled_cutmix(black, black.bitwise_not(), boxes, size)
    shares = mixed.double().mean((1, 2, 3)) / 255
    on_edges = 4 / side  # pixels that are covered in part, each rounded by half of a 255th
    assert np.abs(1 - shares.numpy() - lam).max() <= on_edges * 0.5 / 255 + 1e-6


@settings(max_examples=15)
@given(SIZES)
def test_a_box_at_its_own_size_is_that_of_cutmix(size: int) -> None:
    boxes, _ = drawn_boxes(6, size)
    pixels = np.random.Philox(size).random_raw(36 * size**2 // 8 + 1).view(np.uint8)[: 36 * size**2]
    first, second = torch.from_numpy(pixels.reshape(2, 6, 3, size, size)).unbind(0)
    assert scaled_cutmix(first, second, boxes, size).equal(cutmix(first, second, boxes))


# Views


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a set in ImageNet's shape: 3 classes, 24 + 9 pictures."""
    path = tmp_path_factory.mktemp("sizes")
    write_imagenet(path / "imagenet", train=SAMPLES // 3)
    return path


@pytest.fixture(scope="module")
def data(root: Path) -> Dataset:
    return load("imagenet", root=root, image_size=SMALL, workers=0)


RENDERINGS = Rendering(LARGE, 54), Rendering(SMALL, 36, "bicubic")


def plan(mixes: tuple[str, ...] = ("cutmix", "mixup")) -> ViewPlan:
    return ViewPlan(SAMPLES, LARGE, None, crop_flip=True, seed=3, mixes=mixes)


def makers(data: Dataset, drawn: ViewPlan) -> list[Views]:
    return [Views(data.rendered(one).train, drawn, SAMPLES, CPU) for one in RENDERINGS]


def test_x_of_every_size_shows_the_same_part_of_a_picture(root: Path, data: Dataset) -> None:
    table = plan().epoch(1)
    files = sorted((root / "imagenet/train").rglob("*.JPEG"))
    for maker, rendering in zip(makers(data, plan()), RENDERINGS, strict=True):
        views = maker.views(1, 0, range(6))
        for position, view in enumerate(views):
            with Image.open(files[table.order[position]]) as picture:
                part = picture.crop(random_resized_box(int(table.crop[position]), *picture.size))
            size = (rendering.image_size, rendering.image_size)
            expected = np.asarray(part.resize(size, Image.Resampling[rendering.interpolation.upper()]))
            if table.flip[position]:
                expected = expected[:, ::-1]
            assert (view.permute(1, 2, 0).numpy() == expected).all()


def test_the_views_of_two_sizes_come_from_one_decoding(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = plan()
    of_teacher, of_student = makers(data, drawn)
    of_student.other_rendering = lambda epoch: RENDERINGS[0] if epoch else None
    expected = torch.cat([of_teacher.views(1, slot, range(SAMPLES)) for slot in range(3)])
    decoded: list[str] = []
    of = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda data, name, *limits: decoded.append(name) or of(data, name, *limits))
    (batch,) = of_student.epoch(1)
    assert batch.views.shape == (3 * SAMPLES, 3, SMALL, SMALL)
    assert of_teacher.of_batch(batch).equal(expected)
    assert of_teacher.of_batch(batch, with_mixed=False).equal(expected[:SAMPLES].byte())
    assert len(decoded) == SAMPLES
    (other,) = of_student.epoch(0)  # in which the teacher was not expected to see anything
    assert len(decoded) == 2 * SAMPLES
    of_teacher.of_batch(other)
    assert len(decoded) == 3 * SAMPLES


def test_views_that_are_the_same_are_made_once(data: Dataset) -> None:
    """Where x are random crops, another clean view alone does not make other views."""
    maker, clean = (Views(data.train, one, 8, CPU) for one in (plan(), replace(plan(()), crop_flip=False)))
    own = data.card.rendering
    assert maker.rendered(replace(own, shorter_side=40)) is maker
    for other, rendering in ((clean, replace(own, shorter_side=40)), (maker, replace(own, interpolation="bicubic"))):
        made = other.rendered(rendering)
        assert made.split.pictures is not None
        assert made.split.pictures.rendering == rendering


def smooth(count: int, side: int) -> Tensor:
    """The same smooth pictures at any size, bright in the middle."""
    place = (torch.arange(side) + 0.5) / side
    waves = [(torch.sin(place * (2 + row % 3)) + torch.cos(place * (1 + row % 4))[:, None]) for row in range(count)]
    bright = torch.stack(waves)[:, None] * torch.tensor([40.0, 50, 60])[:, None, None]
    return (bright + 80).clamp(0, 255).byte()


@pytest.mark.parametrize("mix", [*MIXES])
def test_every_augmentation_shows_the_same_at_both_sizes(mix: str) -> None:
    count, size, side = 60, 128, 64
    parameters, _, _ = draw_rows(mix, np.random.Philox(7).random_raw(2 * count).reshape(-1, 2), size)
    large, small = (
        apply_mix(mix, smooth(count, one), smooth(count, one).flip(0), parameters, size) for one in (size, side)
    )
    averaged = torch.nn.functional.avg_pool2d(large.float(), 2)
    difference = (averaged - small.float()).abs().mean((1, 2, 3))
    assert difference.median() < 1.5, mix
    assert difference.max() < 9, mix  # equalize, whose levels jump


def test_what_has_one_size_is_refused_at_another(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = replace(plan(), padding=4)
    assert "padded crops: expected 48, got 32" in refusal(lambda: Views(data.train, padded, 8, CPU))
    fixed = find_mix("cutmix")._replace(apply_scaled=None)
    monkeypatch.setattr(apply, "find_mix", lambda mix: fixed)
    message = refusal(lambda: Views(data.train, plan(("cutmix",)), 8, CPU))
    assert "image size of the student: expected 48, got 32" in message
    assert "apply_scaled" in message


# Training


def common(root: Path) -> Settings:
    return {
        **{"dataset": "imagenet", "data_root": root, "model": "resnet8", "batch_size": 12, "workers": 0},
        **{"device": "cpu", "precision": "float32", "epochs": 1},
    }


@pytest.fixture(scope="module")
def teacher(root: Path) -> Path:
    given = {**common(root), "image_size": LARGE, "out": root / "teacher"}
    return train_teacher(TeacherConfig.load("imagenet", **given)).path


def student(root: Path, out: str, **more: Any) -> FinishedRun:
    given = {**common(root), "teacher": root / "teacher", "aug": "cutmix-pick", "out": root / out, **more}
    return train_student(StudentConfig.load("imagenet", **given))


def run_command(*words: str) -> str:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return result.output


def weights(run: FinishedRun) -> dict[str, Tensor]:
    return load_file(run.path / "model.safetensors")


def same(one: FinishedRun, other: FinishedRun) -> bool:
    return all(tensor.equal(weights(other)[key]) for key, tensor in weights(one).items())


def test_one_store_serves_students_of_every_size(root: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = 3 * SAMPLES
    first = student(root, "first", image_size=SMALL)
    assert (first.summary["teacher_forwards"], first.summary["cache_hits"]) == (views, 0)
    assert checkpoint.rendering_of(first.network_file) == Rendering(SMALL, 36)
    rendered: list[list[int]] = []
    of = pictures.Pictures.render

    def render(self: pictures.Pictures, samples: Tensor, renderings: list[Rendering], *rest: Any) -> list[Tensor]:
        rendered.append([one.image_size for one in renderings])
        return of(self, samples, renderings, *rest)

    monkeypatch.setattr(pictures.Pictures, "render", render)
    for name, size in (("second", THIRD), ("inherits", None)):
        run = student(root, name, image_size=size)
        assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, views)
        assert run.config.image_size == (size or LARGE)
    assert {tuple(sizes) for sizes in rendered} == {(THIRD,), (LARGE,)}  # nothing is rendered in vain
    rendered.clear()
    # Without a store, the teacher's answers and so the weights are the same, and each picture is decoded once.
    online = student(root, "online", image_size=SMALL, cache="off")
    assert online.summary["teacher_forwards"] == views
    assert same(online, first)
    assert {tuple(sizes) for sizes in rendered} == {(SMALL, LARGE), (SMALL,)}  # the latter to evaluate it
    shown = run_command("cache", "verify", str(teacher), "--all", "--device", "cpu")
    assert f"intact: {4 * SAMPLES} views compared, max error 0," in shown
    config = StudentConfig.load("imagenet", **common(root), teacher=teacher, aug="cutmix", image_size=SMALL)
    data, compute = load_data(config), Compute(CPU, "float32")
    own = Views(data.train, make_plan_for_size(config, SAMPLES, data.card), 8, CPU)
    message = refusal(lambda: open_cached_teacher(config, data, own, compute))
    assert "view plan, which is that of the teacher: expected 48, got 32" in message
    assert "expected" not in run_command("evaluate", str(first.path), "--device", "cpu")  # beside its teacher
    planned = [f"--{name}={value}" for name, value in (("teacher", teacher), ("image-size", SMALL), ("epochs", 2))]
    (auto,) = (
        line for line in run_command("cache", "plan", "--aug=cutmix-pick", *planned).splitlines() if "auto" in line
    )
    assert str(views) in auto, auto  # of the second epoch


def test_a_store_is_of_the_teacher_whoever_opens_it(root: Path, teacher: Path) -> None:
    """A student of another size, or precomputing for one, creates a store that serves all."""
    options: Settings = {"store": str(root / "own.zarr"), "aug": "none"}
    config = StudentConfig.load("imagenet", **common(root), **options, teacher=teacher, image_size=SMALL)
    assert precompute_answers(config).teacher_forwards == SAMPLES
    for size in (SMALL, LARGE):
        run = student(root, f"clean{size}", image_size=size, **options)
        assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, SAMPLES)
    online = student(root, "clean-online", image_size=SMALL, cache="off", aug="none")
    assert same(online, FinishedRun(root / f"clean{SMALL}"))
    assert "intact" in run_command("cache", "verify", str(teacher), "--store", options["store"], "--all")


def test_a_student_that_sees_its_teachers_images_in_another_way_is_told(
    root: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    views = {"resized": "", "padded": "random crop of the teacher"}
    for crop, expected in views.items():
        given: Settings = {**common(root), "image_size": SMALL, "crop": crop, "cache": "off"}
        config = StudentConfig.load("imagenet", **given).model_copy(update={"teacher": teacher})
        images = load_data(config)
        own = Views(images.train, make_plan(config, images), 8, CPU)
        if not expected:
            open_cached_teacher(config, images, own, Compute(CPU, "float32"))
            continue
        message = refusal(lambda: open_cached_teacher(config, images, own, Compute(CPU, "float32")))  # noqa: B023
        assert f"{expected} {teacher}: expected padded, as for the student, got resized" in message
        assert "--crop resized" in message
    (line,) = (line for line in caplog.messages if line.startswith("images of the student"))
    assert "center crop 32x32; of its teacher" in line
    assert line.endswith("center crop 48x48")


def test_losses_on_maps_take_networks_of_two_sizes(root: Path, teacher: Path) -> None:
    given: Settings = {"image_size": THIRD, "loss": "fitnet+at+vid+kd", "aug": "cutmix"}
    run, online = (student(root, f"maps-{cache}", cache=cache, **given) for cache in ("auto", "off"))
    assert run.summary["teacher_forwards"] in (SAMPLES, 2 * SAMPLES)  # every x, and x' unless they are stored
    assert same(run, online)


# The clean view of a network


def test_weights_bring_the_clean_view_that_their_library_states(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network = build("resnet8", num_classes=3, image_size=LARGE, seed=1)
    tensors = {name: value.contiguous() for name, value in network.body.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    stated = {"crop_pct": 0.95, "interpolation": "bicubic", "mean": [0.4] * 3, "std": [0.2] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": stated}))
    config = TeacherConfig.load(
        "imagenet", **common(root), image_size=LARGE, init=str(tmp_path / "model.safetensors"), out=tmp_path / "run"
    )
    data = load_data(config)
    loaded = find_network(tmp_path / "model.safetensors", data, "resnet8").network
    started, init = initial_network(config, data)
    expected = Rendering(LARGE, 50, "bicubic")
    assert loaded.rendering == started.rendering == expected
    assert init is not None
    assert "clean view: shorter side resized to 50 (bicubic), center crop 48x48, from the checkpoint" in caplog.text
    # The saved network keeps it, is evaluated by it, and passes it on to one of another size.
    run = train_teacher(config)
    (store,) = stores_of(run.path).open()
    assert store.fingerprint["rendering"] == expected.evaluation
    assert checkpoint.load(run.network_file).rendering == expected
    transform = v2.Compose([v2.Resize(50, v2.InterpolationMode.BICUBIC), v2.CenterCrop(LARGE), v2.PILToTensor()])
    with Image.open(sorted((root / "imagenet/val").rglob("*.JPEG"))[4]) as picture:
        assert data.rendered(expected).test.take(torch.tensor([4]))[0].equal(transform(picture.convert("RGB")))
    assert load_run_data(run).card.rendering == expected  # which the images are compared in
    smaller = student(root, "smaller", image_size=SMALL, init=str(run.path), loss="ce", aug="standard")
    assert checkpoint.rendering_of(smaller.network_file) == Rendering(SMALL, 33, "bicubic")
    images = data.rendered(Rendering(SMALL, 33, "bicubic")).test
    assert smaller.read_environment()["origin"]["test set"] == images.fingerprint


def test_timm_states_a_clean_view_for_each_size(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    body = torch.nn.Identity()
    assert clean_crop_of(body) is None
    stated = {"crop_pct": 0.9, "interpolation": "bicubic", "test_input_size": (3, 288, 288), "test_crop_pct": 1.0}
    body.pretrained_cfg = stated  # type: ignore[assignment]
    crop = clean_crop_of(body)
    assert crop is not None
    assert (crop.rendering(224), crop.rendering(288)) == (
        Rendering(224, 248, "bicubic"),
        Rendering(288, 288, "bicubic"),
    )
    body.pretrained_cfg = {**stated, "crop_mode": "squash"}  # type: ignore[assignment]
    assert clean_crop_of(body) is None
    assert "crop mode squash, which is not used" in caplog.text
