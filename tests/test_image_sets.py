"""The stores of one teacher: one for each set of images, which share what is known of clean views."""

import os
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from kdcache.stages import precompute_answers, train_student
from PIL import Image

from kdcache import checked_files, datasets
from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.answers import budget, table
from kdcache.answers.clean_views import find_equal_rows
from kdcache.answers.find import Answers, find_answers
from kdcache.answers.location import StoreLocation
from kdcache.answers.open import make_cached_teacher, make_reader
from kdcache.answers.space import stored_bytes
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.answers.teacher_stores import TeacherStores
from kdcache.cli import cli
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Split
from kdcache.datasets.pack import pack
from kdcache.errors import KdcacheError, UsageError
from kdcache.run.find import stores_of
from kdcache.setup import load_data
from kdcache.stores import find_answers_of
from kdcache.study.cost import SharedStores
from kdcache.study.planned import PlannedRun
from tests import answers
from tests.samples import noise as random_pixels

Settings = dict[str, object]
NEW = 4


@pytest.fixture
def own(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the teacher with the store of its training images alone, and its clean views in it."""
    copy = shutil.copytree(teacher, tmp_path / "teacher", ignore=shutil.ignore_patterns("replay"))
    for path in (copy / "answers").iterdir():
        if path.is_dir() and path.name != answers.stored(teacher).name:
            shutil.rmtree(path)
    return copy


@pytest.fixture
def grown(pictures: Path, tmp_path: Path) -> Path:
    """The pictures with some more; one has another name, and one is in another class."""
    train = shutil.copytree(pictures, tmp_path / "grown") / "train"
    for number in range(NEW):
        pixels = random_pixels(32, 32, 3) // (number + 1)
        Image.fromarray(pixels).save(train / "dark" / f"a{number}.png")
    os.rename(train / "bright" / "7.png", train / "bright" / "renamed.png")
    os.rename(train / "bright" / "8.png", train / "dark" / "moved.png")
    return train.parent


def filled(small: Settings, teacher: Path, **settings: object) -> tuple[int, AnswerStore]:
    """Fill a store for clean views: the teacher forwards of that, and the store."""
    config = StudentConfig.load(**{**small, "teacher": teacher, "aug": "none", **settings})
    result = precompute_answers(config)
    return result.teacher_forwards, AnswerStore(result.store)


def clean_bits(store: AnswerStore) -> bytes:
    columns = store.table(CLEAN).read(0)
    assert columns is not None
    return columns["logits"].numpy().tobytes()


def test_only_new_pictures_are_asked(small: Settings, own: Path, grown: Path, tmp_path: Path) -> None:
    (found,) = stores_of(own).open()
    assert found.samples == 90
    expected = {"part": ({"train_fraction": 0.5}, 45, 0), "grown": ({"dataset": f"folder:{grown}"}, 90 + NEW, NEW)}
    for name, (settings, samples, asked) in expected.items():
        forwards, store = filled(small, own, **settings)
        fresh_forwards, fresh = filled(small, own, **settings, store=str(tmp_path / f"{name}.zarr"))
        assert (forwards, fresh_forwards, store.samples) == (asked, samples, samples)
        assert clean_bits(store) == clean_bits(fresh)
    assert filled(small, own, dataset=f"folder:{grown}")[0] == 0
    assert [store.samples for store in stores_of(own).open()].count(90) == 1
    assert len(stores_of(own).open()) == 3

    pack(datasets.read(f"folder:{grown}", image_size=32), tmp_path / "packed.h5")
    run = train_student(
        StudentConfig.load(
            **{**small, "dataset": f"hdf5:{tmp_path / 'packed.h5'}", "aug": "none"}, teacher=own, out=tmp_path / "run"
        )
    )
    assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, 90 + NEW)
    assert len(stores_of(own).open()) == 3


def test_cropped_views_of_each_set_have_a_store_of_their_own(small: Settings, own: Path) -> None:
    for fraction, samples in ((0.5, 45), (1, 90), (0.5, 0)):
        forwards, store = filled(small, own, aug="standard", train_fraction=fraction, cache="replay")
        assert forwards == (samples if store.samples == 45 else 90)
    assert [len(store.replay_tables()) for store in stores_of(own).open()] == [1, 1]


def test_a_teacher_that_can_only_be_read_answers_a_part_of_its_images(
    small: Settings, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(own.rglob("*"))
    monkeypatch.setattr(StoreLocation, "write_error", lambda self: "Read-only file system")
    settings = {**small, "train_fraction": 0.5, "aug": "none", "epochs": 2}
    run = train_student(StudentConfig.load(**settings, teacher=own, out=tmp_path / "run"))
    assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, 90)
    assert sorted(own.rglob("*")) == before


def test_an_analysis_of_more_pictures_asks_only_the_new_ones(own: Path, grown: Path) -> None:
    clean = load_analysis_inputs(str(own), dataset=f"folder:{grown}", device="cpu").clean
    clean.classes(torch.arange(90 + NEW))
    assert clean.cached_teacher.pop_counts().forwards == NEW


def test_a_plan_counts_no_hits_of_other_images(
    own: Path, pictures: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(folder: Path, *more: str) -> str:
        words = ("--teacher", str(own), "--dataset", f"folder:{folder}", "--aug", "none", "--epochs", "1", *more)
        cli.main(["cache", "plan", *words], standalone_mode=False)
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("│ clean "))
        return line.split("│")[2].strip()

    others = shutil.copytree(pictures, tmp_path / "others")
    for number, path in enumerate(sorted((others / "train").rglob("*.png"))):
        Image.fromarray(random_pixels(32, 32, 3) // (number + 1)).save(path)
    assert [planned(folder) for folder in (pictures, others, grown)] == ["0", "90", str(NEW)]
    assert len(stores_of(own).open()) == 1
    with pytest.raises(UsageError, match="dataset: expected "):
        planned(others, "--store", str(answers.stored(own)))


def test_commands_show_and_take_each_store(
    small: Settings, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(small, own, aug="standard", train_fraction=0.5, cache="replay")
    filled(small, own, aug="standard", cache="replay")

    def said(*words: str) -> str:
        cli.main(["cache", words[0], str(own), *words[1:]], standalone_mode=False)
        return capsys.readouterr().out

    stores = {store.samples: Path(store.location.where).name for store in stores_of(own).open()}
    shown = said("info")
    for samples, name in stores.items():
        (line,) = (line for line in shown.splitlines() if name in line)
        cells = [cell.strip() for cell in line.split("│")]
        assert cells[3:7] == [str(samples), "32", "float16", "float32"]
    assert "samples: 45" in said("info", "--store", stores[45])
    assert "intact: 225 views compared, max error 0, 0" in said("verify", "--all")
    with pytest.raises(UsageError, match="expected one store that is named with --store, got the 2 of "):
        said("verify", "--dataset", str(small["dataset"]))
    assert said("prune", "--all").count("deleted 1 tables") == 2
    with pytest.raises(UsageError, match="a store that exists"):
        said("info", "--store", "0123456789ab")


def test_commands_go_on_after_a_store_that_cannot_be_read_or_verified(
    small: Settings, own: Path, grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, damaged = (
        filled(small, own, **settings)[1] for settings in ({"dataset": f"folder:{grown}"}, {"train_fraction": 0.5})
    )
    shutil.rmtree(grown)

    def said(*words: str) -> str:
        cli.main(["cache", words[0], str(own), *words[1:]], standalone_mode=False)
        return capsys.readouterr().out

    with pytest.raises(KdcacheError, match="grown does not exist") as error:
        said("verify")
    assert (error.value.exit_code, capsys.readouterr().out.count("against the teacher")) == (1, 2)
    shutil.rmtree(gone.location.where)

    (Path(damaged.location.where) / "zarr.json").write_text("{}")
    name, size = Path(damaged.location.where).name, damaged.location.size()
    with pytest.raises(KdcacheError, match=name) as error:
        said("verify")
    assert (error.value.exit_code, capsys.readouterr().out.count("against the teacher")) == (1, 1)
    (line,) = (line for line in said("info").splitlines() if line.startswith(f"│ {name}"))
    assert "unreadable" in line
    assert f"unreadable: {damaged.location.where}" in said("prune", "--all")
    config = StudentConfig.load(**small, teacher=own)
    found = find_answers_of(config, load_data(config), Compute(answers.CPU, "float32"))
    assert found.space().others == size


def test_a_resumed_run_keeps_the_precision_of_its_teacher(small: Settings, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    settings = {**small, "teacher": own, "precision": "auto", "out": out}
    environment = checked_files.read_json(own / "environment.json")
    environment["origin"]["teacher precision"] = "bfloat16"
    checked_files.write_json(out / "environment.json", environment)
    for resume, expected in ((False, "float32"), (True, "bfloat16")):
        config = StudentConfig.load(**{**settings, "resume": resume})
        found = find_answers_of(config, load_data(config), Compute(answers.CPU, "float32"))
        assert found.teacher.compute.precision == expected


def test_a_study_counts_one_store_for_students_of_two_sizes(small: Settings, own: Path) -> None:
    settings = {**small, "crop": "resized"}
    teacher = PlannedRun(own, "teacher-train", TeacherConfig.load(**{**settings, "image_size": 64}))
    stores = SharedStores(None, empty=True)
    for size in (32, 48, 64):
        config = StudentConfig.load(**{**settings, "image_size": size, "aug": "none"}, teacher=own)
        stores.train(PlannedRun(own.parent / f"student-{size}", "student-train", config, teacher))
    assert len(stores.spaces[own]) == 1


# Stores of arrays


Open = Callable[[Split], Answers]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens the store of a teacher for some images."""
    of = answers.teacher()

    def open_store(split: Split) -> Answers:
        data = answers.dataset(split)
        return find_answers(of.network, data, of.compute, TeacherStores(tmp_path / "answers")).created()

    return open_store


def test_a_fill_that_was_killed_leaves_what_it_computed_to_other_sets(
    noise: Split, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "CHUNK_BYTES", 400)
    first = make_cached_teacher(opened(noise), answers.views(noise), "off", 1)
    assert list(islice(first.precompute_clean(), 2)) == [50, 100]
    rows = np.random.default_rng(0).permutation(150)[:120]
    part = noise.part(rows)
    found = opened(part)
    assert found.clean_beside().tolist() == (rows < 100).tolist()
    second = make_cached_teacher(found, answers.views(part, "none"), "clean", 1)
    assert second.pop_counts().forwards == int((rows >= 100).sum())
    for batch in second.views.epoch(0):
        assert second.logits(batch).equal(answers.teacher()(batch.views).half().float())
    assert second.pop_counts().forwards == 0
    reader = make_reader(opened(noise), answers.views(noise, "none"))
    for batch in reader.views.epoch(0):
        reader.logits(batch)
    assert reader.pop_counts().forwards == 50 - int((rows >= 100).sum())


def test_answers_of_another_teacher_or_precision_are_no_hits(noise: Split, tmp_path: Path) -> None:
    data, stores = answers.dataset(noise), TeacherStores(tmp_path / "answers")
    for seed, precision in ((0, "float32"), (5, "float32"), (0, "bfloat16")):
        of = answers.teacher(seed)
        found = find_answers(of.network, data, Compute(answers.CPU, precision), stores, precision=precision)
        cached = make_cached_teacher(found.created(), answers.views(noise, "none"), "clean", 1)
        assert cached.pop_counts().forwards == len(noise)
    assert len(stores.open()) == 3


def test_damaged_hashes_of_images_cost_forwards_and_are_written_again(
    noise: Split, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table, "CHUNK_BYTES", 2000)

    def fill(split: Split) -> tuple[int, AnswerStore]:
        found = opened(split)
        assert found.store is not None
        return make_cached_teacher(found, answers.views(split, "none"), "clean", 1).pop_counts().forwards, found.store

    _, store = fill(noise)
    assert store.location.folder is not None
    chunk = store.location.folder / "images" / "sha256" / "c" / "0" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    rows = store.images.chunk_rows
    assert fill(noise.part(np.arange(149)))[0] == rows
    assert "images is damaged" in caplog.text
    assert fill(noise)[0] == 0
    assert chunk.read_bytes() == content


def test_equal_digests_are_found_and_no_others() -> None:
    generator = np.random.default_rng(0)
    held = generator.integers(0, 2, (300, 32), np.uint8) * generator.integers(0, 256, (300, 1), np.uint8)
    held[:40] = 0
    held[np.arange(32), np.arange(32)] = 1  # one byte among zeros, at the end too
    wanted = np.concatenate([held[generator.permutation(300)], held ^ np.eye(32, dtype=np.uint8)[np.arange(300) % 32]])
    known = {row.tobytes() for row in held}
    for row, place in zip(wanted, find_equal_rows(wanted, held), strict=True):
        assert (place >= 0) == (row.tobytes() in known)
        assert place < 0 or held[place].tobytes() == row.tobytes()
    assert find_equal_rows(wanted, held[:0]).max() == -1


def test_the_limit_is_that_of_all_stores(noise: Split, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = opened(noise)
    list(make_cached_teacher(first, answers.views(noise), "replay", 1).precompute(1))
    assert first.store is not None
    part = noise.part(np.arange(120))
    found, plan = opened(part), answers.views(part).plan
    taken, own = stored_bytes(first.store), 3 * found.space().table_bytes
    for limit, kinds in ((taken + own, 3), (taken + own - 1, 0)):
        assert len(budget.choose_policy("auto", plan, 1, found.space(limit)).stored_kinds) == kinds
        caplog.clear()
        cached = make_cached_teacher(found, answers.views(part), "auto", 1, limit)
        assert cached.num_stored(1) == kinds * 120
        assert ("the other stores of the teacher take" in caplog.text) == (kinds == 0)
    with pytest.raises(UsageError, match=r"--cache-limit: expected at least .* since the other stores of the teacher"):
        budget.require_space("replay", plan, 1, found.space(taken))


def test_hashes_of_images_count_towards_the_limit_of_other_stores(noise: Split, opened: Open) -> None:
    first = make_cached_teacher(opened(noise), answers.views(noise, "none"), "clean", 1).store
    assert first is not None
    assert opened(noise.part(np.arange(120))).space().others >= first.table_bytes + 32 * len(noise)


def test_hashes_of_images_count_towards_the_limit_of_their_store(noise: Split, opened: Open) -> None:
    found, plan = opened(noise), answers.views(noise, "none").plan
    needed = found.space().table_bytes + 32 * len(noise)
    for limit, kept in ((needed, {"clean"}), (needed - 1, set())):
        assert budget.choose_policy("auto", plan, 1, found.space(limit)).stored_kinds == kept
    assert budget.compare_caches(plan, 1, found.space())[1].added_bytes == needed
    assert make_cached_teacher(found, answers.views(noise, "none"), "clean", 1, needed).store is not None
    with_clean, padded = opened(noise).space(needed + found.space().table_bytes - 1), answers.views(noise, "standard")
    assert with_clean.size == needed
    assert not budget.choose_policy("auto", padded.plan, 1, with_clean).stored_kinds


def test_other_stores_take_no_stored_view_out_of_the_index(noise: Split, opened: Open) -> None:
    list(make_cached_teacher(opened(noise), answers.views(noise), "replay", 1).precompute(1))
    part = noise.part(np.arange(120))
    list(make_cached_teacher(opened(part), answers.views(part, "standard"), "standard", 2).precompute(2))
    index = make_cached_teacher(opened(part), answers.views(part, "standard", 1), "standard", 2, 1).view_index
    assert index is not None
    assert np.count_nonzero(index.lookup(np.arange(120 * 162))[0]) > 120


def test_auto_precision_is_that_of_the_stores(noise: Split, tmp_path: Path) -> None:
    network, stores = answers.teacher().network, TeacherStores(tmp_path / "answers")
    low, own = (Compute(answers.CPU, precision) for precision in ("bfloat16", "float32"))
    whole, part = (answers.dataset(split) for split in (noise, noise.part(np.arange(100))))
    find_answers(network, whole, low, stores, precision="bfloat16").created()
    for data in (whole, part):
        assert find_answers(network, data, own, stores).teacher.compute.precision == "bfloat16"
    another = find_answers(answers.teacher(5).network, whole, own, stores)
    assert another.teacher.compute.precision == "float32"
    find_answers(network, part, own, stores, precision="float32").created()
    for data, expected in ((whole, "bfloat16"), (part, "float32")):
        assert find_answers(network, data, own, stores).teacher.compute.precision == expected
