"""Training loops of one's own: views of images in any form, a teacher that remembers, picks and statistics."""

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from kdcache.stages import train_student
from PIL import Image
from torch import Tensor, nn

import kdcache
from kdcache import UsageError
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.datasets.adapters import as_split
from kdcache.losses import kl_divergence
from tests.processes import run_ranks
from tests.samples import refusal
from tests.stubs import Stub, stub

EPOCHS = 2


@pytest.fixture
def images(noise: Split) -> tuple[Tensor, Tensor]:
    assert noise.images is not None
    return noise.images, noise.labels


def epoch_logits(teacher: CachedTeacher, views: kdcache.Views) -> list[bytes]:
    """Logits of all batches of the first epochs."""
    return [teacher.logits(batch).numpy().tobytes() for epoch in range(EPOCHS) for batch in views.epoch(epoch)]


def test_the_second_loop_needs_no_forward(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    found = []
    for store in (None, tmp_path, tmp_path):
        views = kdcache.Views.of_images(images, "cutmix-pick", batch_size=32, seed=3)
        teacher = kdcache.open_teacher(stub(0), views, store)
        found.append((epoch_logits(teacher, views), teacher.pop_counts().forwards))
    assert found[0][0] == found[1][0] == found[2][0]
    assert [forwards for _, forwards in found] == [3 * 150 * EPOCHS, 3 * 150 * EPOCHS, 0]


@pytest.mark.parametrize("changed", ["weights", "name", "images", "seed", "options"])
def test_another_teacher_other_images_or_other_views_are_computed(
    images: tuple[Tensor, Tensor], changed: str, tmp_path: Path
) -> None:
    def loop(network: kdcache.Network, data: Any, **settings: Any) -> int:
        views = kdcache.Views.of_images(data, "cutmix", **settings)
        teacher = kdcache.open_teacher(network, views, tmp_path)
        teacher.logits(next(views.epoch(0)))
        return teacher.pop_counts().forwards

    other = stub(0)
    if changed == "name":
        other.name = "another"
    first = loop(stub(0), images)
    assert first > 0 == loop(stub(0), images)
    pixels, labels = images
    second = {
        "weights": lambda: loop(stub(1), images),
        "name": lambda: loop(other, images),
        "images": lambda: loop(stub(0), (255 - pixels, labels)),
        "seed": lambda: loop(stub(0), images, seed=1),
        "options": lambda: loop(stub(0), images, options={"cutmix": {"alpha": 0.2}}),
    }[changed]()
    assert second > 0


def test_a_loop_shares_the_store_of_a_students_training(teacher: Path, small: dict[str, Any], tmp_path: Path) -> None:
    config = StudentConfig.load(
        **{**small, "teacher": teacher, "aug": "cutmix", "seed": 71, "out": tmp_path / "student"}
    )
    run = train_student(config)
    data = kdcache.load_dataset(config.dataset, image_size=config.image_size, crop=config.crop)
    views = kdcache.Views.of_images(data, "cutmix", batch_size=config.batch_size, seed=71)
    cached = kdcache.open_teacher(teacher, views)
    for epoch in range(run.config.epochs):
        for batch in views.epoch(epoch):
            cached.logits(batch)
    assert cached.pop_counts().forwards == 0


def test_threads_share_the_work(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    counts = []

    def loop(network: kdcache.Network) -> None:
        views = kdcache.Views.of_images(images, "cutmix", seed=1)
        teacher = kdcache.open_teacher(network, views, tmp_path)
        epoch_logits(teacher, views)
        counts.append(teacher.pop_counts())

    threads = [threading.Thread(target=loop, args=[stub(0)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.forwards for one in counts) == 2 * 150 * EPOCHS
    assert sum(one.requests for one in counts) == 2 * 2 * 150 * EPOCHS


def loop_of_a_rank(
    images: tuple[Tensor, Tensor], store: Path, statistics: Path
) -> tuple[int, list[int], dict[str, Any]]:
    """Forwards of this process, the samples that it saw, and the figures of all."""
    views = kdcache.Views.of_images(images, "cutmix", batch_size=50, seed=1)
    teacher = kdcache.open_teacher(stub(0), views, store)
    recorded, samples = kdcache.Statistics(statistics, views, 1, teacher), []
    for batch in views.epoch(0):
        recorded.record(batch, torch.tensor(1.0), teacher.logits(batch))
        samples += batch.samples.tolist()
    return teacher._computer.counts.forwards, samples, recorded.end_epoch()


def test_processes_divide_the_views_and_share_the_work(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    found = run_ranks(2, loop_of_a_rank, images, tmp_path / "answers", tmp_path / "statistics")
    assert sum(forwards for forwards, _, _ in found) == 300
    assert sorted(sample for _, samples, _ in found for sample in samples) == list(range(150))
    one = loop_of_a_rank(images, tmp_path / "answers", tmp_path / "alone")
    assert one[0] == 0
    assert found[0][2] == found[1][2] == {**one[2], "teacher_forwards": 300, "cache_hits": 0}


def test_processes_that_have_not_joined_are_refused(
    images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    views = kdcache.Views.of_images(images)
    assert "expected a process group, got none" in refusal(lambda: next(views.epoch(0)))


def test_the_example_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[1] / "docs/api.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(example, {})
    torch.manual_seed(0)
    exec(example, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "{'teacher_forwards': 1024, 'cache_hits': 0}"
    assert f"of a second run: {second}" in example


def test_any_module_and_any_function_teach(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pixels, _ = images
    views = kdcache.Views.of_images(images, "none")
    (batch, *_) = views.epoch(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    normalized = (batch.views.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = body(normalized)
    module = kdcache.Network(body, name="linear", num_classes=4, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    made = kdcache.open_teacher(module, views, store_dtype="float32", precision="float32").logits(batch)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)

    def colors(given: Tensor) -> Tensor:
        return torch.cat([given.mean((2, 3)), given.amax((1, 2, 3))[:, None]], 1)

    def forwards(fingerprint: str) -> int:
        function = kdcache.wrap_function(colors, fingerprint=fingerprint, num_classes=4, image_size=32)
        teacher = kdcache.open_teacher(function, views, tmp_path, precision="float32", store_dtype="float32")
        logits = teacher.logits(batch)
        torch.testing.assert_close(logits, colors(batch.views.float()), rtol=1e-6, atol=1e-4)
        return teacher.pop_counts().forwards

    assert len(pixels) == forwards("colors 1") > forwards("colors 1") == 0
    assert forwards("colors 2") == len(pixels)


def test_pick_takes_the_views_with_the_largest_divergence(images: tuple[Tensor, Tensor]) -> None:
    views = kdcache.Views.of_images(images, "cutmix-pick", batch_size=32)
    batch = next(views.epoch(0))
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(64, 4, generator=generator) for _ in range(2))
    rows = kdcache.pick(batch, teacher, student)
    d = kl_divergence(student, teacher, 4.0)
    assert len(rows) == 32
    unpicked = np.setdiff1d(np.arange(64), rows.numpy())
    assert d[rows].min() >= d[unpicked].max()
    assert len(kdcache.pick(batch, teacher, criterion="teacher-entropy", keep=0.25)) == 16
    for logits in (None, student[:32]):
        assert "student's logits for kld: expected 64 rows" in refusal(
            lambda logits=logits: kdcache.pick(batch, teacher, logits)
        )
    assert "criterion: expected one of" in refusal(lambda: kdcache.pick(batch, teacher, student, "largest"))
    assert "share to keep" in refusal(lambda: kdcache.pick(batch, teacher, student, keep=0))


def test_partners_are_those_that_are_mixed_in(images: tuple[Tensor, Tensor]) -> None:
    views = kdcache.Views.of_images(images, "cutmix+cutout", batch_size=32)
    batch = next(views.epoch(0))
    assert torch.equal(images[1][torch.from_numpy(batch.partners)], batch.partner_labels)
    cutmix, cutout = np.split(batch.partners, 2)
    assert (cutmix != batch.samples.numpy()).all()
    assert (cutout == batch.samples.numpy()).all()


def test_statistics_of_a_loop(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    views = kdcache.Views.of_images(images, "cutmix-pick", batch_size=50)
    teacher, student = kdcache.open_teacher(stub(0), views), stub(1)
    statistics = kdcache.Statistics(tmp_path / "statistics", views, 1, teacher)
    d_x, ratios, disagreements = torch.empty(150), [], 0
    for batch in views.epoch(0):
        logits = teacher.logits(batch)
        with torch.no_grad():
            outputs = student(batch.views)
        x, candidates = outputs.tensor_split([50])
        rows = kdcache.pick(batch, logits[50:], candidates)
        statistics.record(batch, torch.tensor(2.0), logits, x, candidates[rows], rows, candidates)
        d = kl_divergence(outputs, logits, 4.0)
        d_x[batch.samples] = d[:50]
        ratios.append(d[50:][rows].mean() / d[50:].mean())
        disagreements += int((logits[50:].argmax(1) != batch.mixed_labels()).sum())
    found = statistics.end_epoch()
    assert found["loss"] == 2
    assert found["kl_ratio"] == pytest.approx(float(torch.stack(ratios).mean()), rel=1e-5)
    assert found["label_disagreement"] == pytest.approx(disagreements / 300)
    assert found["teacher_forwards"] == 450
    stored = zarr.open_group(tmp_path / "statistics", mode="r")
    np.testing.assert_allclose(stored["d_x"][0], d_x.numpy(), rtol=1e-3)
    assert stored["picked"][0].sum() == 150
    assert "expected a new folder" in refusal(lambda: kdcache.Statistics(tmp_path / "statistics", views, 1, teacher))


class Items(torch.utils.data.Dataset[Any]):
    """A map-style dataset, as torchvision has them."""

    def __init__(self, pixels: Tensor, labels: Tensor, transform: object = None) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy()), int(self.labels[index])


def test_all_forms_of_images_are_the_same(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pixels, labels = images
    rows = pixels.permute(0, 2, 3, 1)
    forms = [
        images,
        (pixels.numpy(), labels.tolist()),
        (rows.contiguous(), labels.numpy().astype(np.uint8)),
        [rows.numpy(), labels],
        Split(pixels, labels),
        Items(pixels, labels),
        torch.utils.data.Subset(Items(pixels, labels), range(150)),
    ]
    assert len({as_split(form).fingerprint for form in forms}) == 1
    gray = as_split((pixels[:, 0], labels))
    assert gray.images is not None
    assert torch.equal(gray.images[:, 2], pixels[:, 0])
    assert (as_split((pixels, None)).labels == -1).all()


def test_files_and_columns_of_encoded_images(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pixels, labels = images[0][:12], images[1][:12]
    for number, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02}.png")
    paths = sorted(map(str, tmp_path.glob("*.png")))
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "class": datasets.ClassLabel(num_classes=4)})
    columns = [
        datasets.Dataset.from_dict({"picture": column, "class": labels.tolist()}, features)
        for column in (paths, [{"bytes": Path(path).read_bytes(), "path": None} for path in paths])
    ]
    splits = [as_split(form, 32) for form in ((paths, labels), *columns)]
    assert len({split.fingerprint for split in splits}) == 1
    for split in splits:
        assert torch.equal(split.take(torch.arange(12)), pixels)
        views = kdcache.Views.of_images(split, "cutmix", crop="padded")
        assert torch.equal(views.split.labels, labels)
        assert views.plan.padding == 4
        assert kdcache.Views.of_images(split).plan.random_resized
    assert kdcache.Views.of_images(columns[0], image_size=24).split.image_size == 24


def test_a_student_of_another_size(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    for number, image in enumerate(images[0][:20]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02}.png")
    files = (sorted(tmp_path.glob("*.png")), images[1][:20])
    found = []
    for size in (32, 20):
        views = kdcache.Views.of_images(files, "cutmix", image_size=size, teacher_size=32)
        teacher = kdcache.open_teacher(stub(0), views, tmp_path / "answers")
        batches = list(views.epoch(0))
        found.append([teacher.logits(batch) for batch in batches])
        assert batches[0].views.shape[-1] == size
    assert teacher.pop_counts().forwards == 0
    assert all(map(torch.equal, *found))
    views = kdcache.Views.of_images(files, "cutmix", image_size=20)
    assert "image size of the view plan" in refusal(lambda: kdcache.open_teacher(stub(0), views, tmp_path / "answers"))


def test_what_cannot_be_used_is_refused(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pixels, labels = images
    views = kdcache.Views.of_images(images)
    cases = {
        "give images that are not normalized": lambda: as_split((pixels.float(), labels)),
        "at least one square image": lambda: as_split((pixels[:, :, :20], labels)),
        "labels: expected 150 integers from 0, or None": lambda: as_split((pixels, labels[:9])),
        "got -2": lambda: as_split((pixels, labels - 2)),
        "one without a transform": lambda: as_split(Items(pixels, labels, "ToTensor()")),
        "got transform=Crop": lambda: as_split(torch.utils.data.Subset(Items(pixels, labels, "Crop"), [0])),
        "image size of image files": lambda: as_split((["a.png"], [0])),
        "image size of arrays: expected 32": lambda: as_split(images, 64),
        "images: expected (images, labels)": lambda: as_split(3),
        "crop of arrays of one size": lambda: kdcache.Views.of_images(images, crop="resized"),
        "crop: expected one of": lambda: kdcache.Views.of_images(images, crop="random"),
        "aug: expected": lambda: kdcache.Views.of_images(images, "cutmux"),
        "options cutmix.alpha": lambda: kdcache.Views.of_images(images, "cutmix", options={"cutmix": {"alpha": 0.25}}),
        "mean color of these images is not stated": lambda: kdcache.Views.of_images(
            images, "cutout", options={"cutout": {"fill": "mean"}}
        ),
        "teacher: expected a network or a run folder, got Stub": lambda: kdcache.open_teacher(Stub(), views),  # type: ignore[arg-type]
        "classes of the teacher: expected at least 4": lambda: kdcache.open_teacher(
            kdcache.build_network("resnet8", num_classes=3, seed=0), views
        ),
        "image size of the view plan": lambda: kdcache.open_teacher(
            kdcache.build_network("resnet8", num_classes=4, image_size=48, seed=0), views
        ),
        "nothing.safetensors": lambda: kdcache.open_teacher(tmp_path / "nothing.safetensors", views),
    }
    for message, call in cases.items():
        assert message in refusal(call), message
        assert "--" not in refusal(call), message  # there are no options in Python
    with pytest.raises(UsageError, match="expected one size"):
        as_split([(Image.new("RGB", (8, 8)), 0), (Image.new("RGB", (9, 9)), 1), (Image.new("RGB", (9, 9)), 1)])


@pytest.mark.parametrize("change", ["seed", "aug", "images"])
def test_a_batch_of_other_views_is_refused(images: tuple[Tensor, Tensor], change: str, tmp_path: Path) -> None:
    pixels, labels = images
    views = kdcache.Views.of_images(images, "cutmix", seed=1)
    teacher = kdcache.open_teacher(stub(0), views, tmp_path)
    others = {
        "seed": lambda: kdcache.Views.of_images(images, "cutmix", seed=2),
        "aug": lambda: kdcache.Views.of_images(images, "mixup", seed=1),
        "images": lambda: kdcache.Views.of_images((pixels.flip(0), labels), "cutmix", seed=1),
    }
    batch = next(others[change]().epoch(0))
    assert "expected one of the views of this teacher" in refusal(lambda: teacher.logits(batch))
    again = next(kdcache.Views.of_images(images, "cutmix", seed=1).epoch(0))
    assert torch.equal(teacher.logits(again), teacher.logits(next(views.epoch(0))))


def test_a_teacher_stays_as_it_was_opened(images: tuple[Tensor, Tensor]) -> None:
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 32 * 32), nn.Linear(3 * 32 * 32, 4))
    network = kdcache.Network(body, name="bn", num_classes=4, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    views = kdcache.Views.of_images(images, "none")
    batch, teacher = next(views.epoch(0)), kdcache.open_teacher(network, views)
    expected = teacher.logits(batch)
    body.train()
    network.train()  # as the module that has both networks does
    assert torch.equal(kdcache.open_teacher(network, views).logits(batch), expected)
    network.train()
    assert torch.equal(teacher.logits(batch), expected)
    with torch.no_grad():
        body[2].bias += 1
    with pytest.raises(kdcache.KdcacheError, match="expected those that it was opened with"):
        teacher.logits(batch)


def test_modules_that_need_contiguous_images(images: tuple[Tensor, Tensor]) -> None:
    class Viewing(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.view(len(pixels), -1)[:, :4]

    views = kdcache.Views.of_images(images, "cutmix")
    batch = next(views.epoch(0))
    network = kdcache.Network(Viewing(), name="v", num_classes=4, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert kdcache.open_teacher(network, views).logits(batch).shape == (len(batch.views), 4)
    function = kdcache.wrap_function(Viewing(), fingerprint="v", num_classes=4, image_size=32)
    assert kdcache.open_teacher(function, views).logits(batch).shape == (len(batch.views), 4)


def test_a_function_is_not_under_autocast(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    function = kdcache.wrap_function(
        lambda given: given.mean((2, 3)) @ weights, fingerprint="w", num_classes=4, image_size=32
    )
    views = kdcache.Views.of_images(images, "none")
    batch, found = next(views.epoch(0)), []
    for precision in ("float32", "bfloat16"):
        teacher = kdcache.open_teacher(function, views, tmp_path, precision=precision, store_dtype="float32")
        found.append(teacher.logits(batch))
        assert teacher.teacher.compute.precision == "float32"
    assert torch.equal(*found)
    assert teacher.pop_counts().forwards == 0


def test_what_a_teacher_returns_is_checked(images: tuple[Tensor, Tensor]) -> None:
    views = kdcache.Views.of_images(images, "none")
    batch = next(views.epoch(0))
    for returned in (lambda x: x[:, :1, 0, 0], lambda x: x[:1, :, 0, 0], lambda x: (x,), lambda x: x[:, 0, 0, :5]):
        wrong = kdcache.wrap_function(returned, fingerprint="wrong", num_classes=4, image_size=32)
        teacher = kdcache.open_teacher(wrong, views)
        with pytest.raises(kdcache.KdcacheError, match="expected logits of shape"):
            teacher.logits(batch)


def test_columns_of_hugging_face(images: tuple[Tensor, Tensor]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": images[0][:6].permute(0, 2, 3, 1).numpy(), "label": [0, 1, 2, 3, 0, 1], "text": list("abcdef")}
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64"), "text": datasets.Value("string")}
    whole = datasets.Dataset.from_dict(rows, datasets.Features(kinds))
    assert as_split(whole, 32).labels.tolist() == rows["label"]
    assert (as_split(whole.select_columns(["image"]), 32).labels == -1).all()
    cases = {
        "or one Image alone": lambda: as_split(whole.select_columns(["image", "text"]), 32),
        "one without a transform": lambda: as_split(whole.with_transform(lambda row: row), 32),
        "Choose one of train": lambda: as_split(datasets.DatasetDict({"train": whole}), 32),
        "got a stream": lambda: as_split(whole.to_iterable_dataset(), 32),
    }
    for message, call in cases.items():
        assert message in refusal(call), message


def test_more_forms_of_images(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    pixels, labels = images[0][:6], images[1][:6]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    expected = as_split((pixels, labels)).fingerprint
    assert as_split((pictures, labels)).fingerprint == expected
    assert as_split((pixels.permute(0, 2, 3, 1).numpy()[..., ::-1], labels)).fingerprint != expected
    for number, picture in enumerate(pictures):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        picture.save(tmp_path / str(number % 2) / f"{number}.png")

    class Inverting(torchvision.datasets.ImageFolder):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            picture, label = super().__getitem__(index)
            return Image.fromarray(255 - np.asarray(picture)), label

    plain, inverted = (as_split(kind(tmp_path), 32) for kind in (torchvision.datasets.ImageFolder, Inverting))
    assert plain.pictures is not None
    assert inverted.images is not None
    assert torch.equal(255 - plain.take(torch.arange(6)), inverted.images)
    joined = torch.utils.data.ConcatDataset([Items(pixels, labels), Items(pixels, labels, "Flip")])
    assert "got transform=Flip" in refusal(lambda: as_split(joined))
    assert "8 bits per channel" in refusal(lambda: as_split(([Image.new("I;16", (8, 8))] * 3, [0, 1, 2])))


def test_choices_are_checked_before_a_store_is_made(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    views = kdcache.Views.of_images(images)
    wrong = {"precision": "fp32", "store_dtype": "half", "topk": 0, "limit": 0}
    for name, value in wrong.items():
        option: dict[str, Any] = {name: value}
        message = refusal(lambda option=option: kdcache.open_teacher(stub(0), views, tmp_path / "store", **option))
        assert message.startswith(f"{name}: expected")
    assert "limit: expected at least" in refusal(lambda: kdcache.open_teacher(stub(0), views, tmp_path / "s", limit=99))
    assert not (tmp_path / "store").exists()
    for mean, std in (((125, 120, 110), (60, 60, 60)), ((0.5, 0.5), (0.2, 0.2)), ((0.5,) * 3, (0, 0.2, 0.2))):
        options: dict[str, Any] = {"num_classes": 4, "image_size": 32, "mean": mean, "std": std}
        assert "of the network" in refusal(lambda options=options: kdcache.Network(Stub(), name="n", **options))
    for function, fingerprint in (("x", "y"), (len, "")):
        options = {"fingerprint": fingerprint, "num_classes": 4, "image_size": 32}
        refusal(lambda options=options, function=function: kdcache.wrap_function(function, **options))
    with pytest.raises(ValueError, match="teacher's"):
        kdcache.losses.kd_loss(torch.zeros(8, 4), torch.zeros(8, 1), 4.0)


def test_statistics_need_no_student_for_label_disagreement(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    views = kdcache.Views.of_images(images, "cutmix", batch_size=50)
    teacher, disagreements = kdcache.open_teacher(stub(0), views), 0
    statistics = kdcache.Statistics(tmp_path / "new" / "statistics", views, 1, teacher)
    assert "expected recorded steps" in refusal(statistics.end_epoch)
    for batch in views.epoch(0):
        logits = teacher.logits(batch)
        statistics.record(batch, 0.5, logits)
        disagreements += int((logits[50:].argmax(1) != batch.mixed_labels()).sum())
    assert statistics.end_epoch()["label_disagreement"] == pytest.approx(disagreements / 150)
    late = next(views.epoch(1))
    assert "below 1" in refusal(lambda: statistics.record(late, 0.5, teacher.logits(late)))


def test_two_teachers_of_one_batch_see_their_own_renderings(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    for number, image in enumerate(images[0][:20]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02}.png")
    files = (sorted(tmp_path.glob("*.png")), images[1][:20])
    networks = [stub(0), stub(0)]
    networks[1].rendering = replace(networks[1].rendering, interpolation="bicubic")

    def views() -> kdcache.Views:
        return kdcache.Views.of_images(files, "cutmix", image_size=20, teacher_size=32)

    alone = []
    for network in networks:
        own = views()
        teacher = kdcache.open_teacher(network, own, precision="float32")
        alone.append(teacher.logits(next(own.epoch(0))))
    shared = views()
    teachers = [kdcache.open_teacher(network, shared, precision="float32") for network in networks]
    batch = next(shared.epoch(0))
    assert not torch.equal(*alone)
    for teacher, expected in zip(teachers, alone, strict=True):
        assert torch.equal(teacher.logits(batch), expected)
