"""The oracle, and the store of clean answers that it remembers."""

from pathlib import Path

import pytest
import torch

from kdcache import models
from kdcache.compute import Compute
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from kdcache.files import write_whole_folder
from kdcache.oracle import FORWARD_ROWS, Oracle, Teacher
from kdcache.views import Batch, Plan, ViewMaker

CPU = Compute(torch.device("cpu"), "float32")


def make_teacher(seed: int = 0, precision: str = "float32") -> Teacher:
    return Teacher(models.build("resnet8", num_classes=4, seed=seed), Compute(CPU.device, precision))


def first_clean_batch(noise: Split) -> Batch:
    plan = Plan(len(noise), 32, 4, crop_flip=False, mix=None, slots=0, seed=0)
    return next(ViewMaker(noise, plan, 50, CPU.device).epoch(0))


def test_forwards_have_a_fixed_number_of_rows(noise: Split) -> None:
    teacher = make_teacher()
    rows: list[int] = []
    teacher.network.body.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert teacher(noise.images).shape == (150, 4)
    assert rows == [FORWARD_ROWS["cpu"]] * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_answer_is_the_same_bits_in_any_order_with_any_neighbours(precision: str, noise: Split) -> None:
    teacher = make_teacher(precision=precision)
    whole = teacher(noise.images)
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert teacher(noise.images[shuffled]).equal(whole[shuffled])
    assert teacher(noise.images[70:75]).equal(whole[70:75])


def test_an_answer_that_is_not_finite_in_the_store_stops_the_run(noise: Split) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.network.body.head.bias[2] = 1e6  # finite in float32, not in float16
    with pytest.raises(KdcacheError, match="not finite in float16"):
        teacher(noise.images[:5])


def test_clean_answers_are_asked_once_ever_and_stored_bits_are_live_bits(noise: Split, tmp_path: Path) -> None:
    path, batch = tmp_path / "answers.zarr", first_clean_batch(noise)
    live = Oracle(make_teacher())
    asked_now = live.ask(batch)
    assert live.count() == {"questions_asked": 50, "questions_answered": 0}
    live.remember_clean(path, noise, {})
    assert live.ask(batch).equal(asked_now)
    assert live.count() == {"questions_asked": 150, "questions_answered": 50}

    later = Oracle(make_teacher())
    later.remember_clean(path, noise, {})
    assert later.ask(batch).equal(asked_now)
    assert later.count() == {"questions_asked": 0, "questions_answered": 50}


@pytest.mark.parametrize("other", ["teacher", "dataset", "teacher precision"])
def test_answers_are_refused_for_anything_else(other: str, noise: Split, tmp_path: Path) -> None:
    Oracle(make_teacher()).remember_clean(tmp_path / "answers.zarr", noise, {})
    teacher, data = make_teacher(precision="bfloat16" if other == "teacher precision" else "float32"), noise
    if other == "teacher":
        with torch.no_grad():
            teacher.network.body.head.bias[0] += 1e-3
    if other == "dataset":
        images = noise.images.clone()
        images[149, 2, 31, 31] ^= 1
        data = Split(images, noise.labels)
    with pytest.raises(UsageError) as refusal:
        Oracle(teacher).remember_clean(tmp_path / "answers.zarr", data, {})
    (line,) = refusal.value.faults
    identities = [str(whose.identity(about)[other]) for whose, about in ((make_teacher(), noise), (teacher, data))]
    assert [word for word in (f"another {other}", *identities) if word not in line] == []


@pytest.mark.parametrize("damage", ["bit", "truncated", "zeroed", "deleted", "no metadata"])
def test_damage_is_noticed(damage: str, noise: Split, tmp_path: Path) -> None:
    path = tmp_path / "answers.zarr"
    Oracle(make_teacher()).remember_clean(path, noise, {})
    chunk = path / "logits" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    if damage == "bit":
        content[100] ^= 1
        chunk.write_bytes(content)
    elif damage == "truncated":
        chunk.write_bytes(content[:-7])
    elif damage == "zeroed":
        chunk.write_bytes(bytes(len(content)))
    elif damage == "deleted":
        chunk.unlink()
    else:
        (path / "zarr.json").unlink()
    with pytest.raises(KdcacheError, match=r"answers.zarr"):
        Oracle(make_teacher()).remember_clean(path, noise, {})


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(folder: Path, *, fails: bool) -> None:
        folder.mkdir()
        (folder / "half").write_text(str(fails))
        if fails:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_whole_folder(tmp_path / "store", lambda folder: write(folder, fails=True))
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        write_whole_folder(tmp_path / "store", lambda folder: write(folder, fails=False))
    with pytest.raises(OSError, match="no space"):
        write_whole_folder(tmp_path / "store", lambda folder: write(folder, fails=True))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert (tmp_path / "store" / "half").read_text() == "False"


def test_answers_have_the_precision_of_the_store_and_ask_for_no_gradient(noise: Split) -> None:
    answers = Oracle(make_teacher()).ask(first_clean_batch(noise))
    assert answers.dtype == torch.float32
    assert answers.half().float().equal(answers)
    assert not answers.requires_grad
    assert not answers.is_inference()  # else no loss could be built on them


def test_the_remembered_answers_are_those_of_the_samples_in_their_order(noise: Split, tmp_path: Path) -> None:
    oracle = Oracle(make_teacher())
    oracle.remember_clean(tmp_path / "answers.zarr", noise, {})
    oracle.count()
    assert oracle.clean().equal(make_teacher()(noise.images).float())
    assert oracle.count() == {"questions_asked": 0, "questions_answered": 150}
    assert oracle.count() == {"questions_asked": 0, "questions_answered": 0}


def test_views_that_are_not_clean_are_asked_whatever_is_remembered(noise: Split, tmp_path: Path) -> None:
    plan = Plan(len(noise), 32, 4, crop_flip=True, mix=None, slots=0, seed=0)
    batch = next(ViewMaker(noise, plan, 50, CPU.device).epoch(0))
    oracle = Oracle(make_teacher())
    oracle.remember_clean(tmp_path / "answers.zarr", noise, {})
    oracle.count()
    assert oracle.ask(batch).equal(make_teacher()(batch.views).float())
    assert oracle.count() == {"questions_asked": 50, "questions_answered": 0}


def test_a_fill_that_is_interrupted_leaves_no_store_and_can_be_repeated(noise: Split, tmp_path: Path) -> None:
    teacher = make_teacher()

    def interrupt(module: object, given: object, answers: object) -> None:
        forwards.append(1)
        if len(forwards) == 2:
            raise KeyboardInterrupt

    forwards: list[int] = []
    hook = teacher.network.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Oracle(teacher).remember_clean(tmp_path / "answers.zarr", noise, {})
    assert list(tmp_path.iterdir()) == []
    hook.remove()
    oracle = Oracle(teacher)
    oracle.remember_clean(tmp_path / "answers.zarr", noise, {})
    assert oracle.count()["questions_asked"] == 150
    assert [path.name for path in tmp_path.iterdir()] == ["answers.zarr"]


@pytest.mark.parametrize("name", ["zarr.json", "logits/zarr.json"])
def test_damaged_metadata_is_one_clear_error(name: str, noise: Split, tmp_path: Path) -> None:
    path = tmp_path / "answers.zarr"
    Oracle(make_teacher()).remember_clean(path, noise, {})
    file = path / name
    file.write_text(file.read_text().replace('"node_type"', '"nodd_type"'))
    with pytest.raises(KdcacheError, match="damaged"):
        Oracle(make_teacher()).remember_clean(path, noise, {})
