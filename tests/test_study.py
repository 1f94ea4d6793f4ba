"""Studies: spread out into runs, carried out, judged, and laid out beside the paper's figures."""

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdcache.errors import UsageError
from kdcache.study.budget import study_budget
from kdcache.study.claims import Claim, Contrast, decide, judge, verdict
from kdcache.study.compare import interval_of_mean
from kdcache.study.expand import expand_study, filter_cells, runs_of
from kdcache.study.launch import launcher
from kdcache.study.paper import paper_figure
from kdcache.study.plan import read_study
from kdcache.study.reproduce import lay_out, train
from tests.studies import STUDY, write_study

STUDIES = sorted(file.stem for file in (Path(__file__).parents[1] / "configs" / "studies").iterdir())


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_that_ships_can_be_spread_out(name: str, tmp_path: Path) -> None:
    study = read_study(name)
    assert {"paper", "mini"} <= study.profiles.keys()
    for profile in study.profiles:
        assert all(cell.runs for cell in expand_study(study, profile, tmp_path))


def test_table_3_is_seven_pairs_eight_rows_three_seeds(tmp_path: Path) -> None:
    cells = expand_study(read_study("table3"), "paper", tmp_path)
    distilled = [run for cell in cells for run in cell.runs if run.teacher is not None]
    assert len({run.path for run in distilled}) == 7 * 8 * 3
    cost = study_budget(cells)
    # x at 240 epochs is one question of each image and epoch, CutMix two, CutMix-pick three; long runs take 960 epochs.
    features = 240 * (1 + 3) + 960 * 3
    students = 240 * (1 + 2 + 3) + 960 * (1 + 3) + features
    assert cost.uncached == 50_000 * (7 * 3 * students + 5)
    assert cost.without_store == 50_000 * 7 * 3 * features
    # Of five teachers, two x' in each of 960 epochs of three seeds, and at most every standard view.
    mixed, standard = 5 * 3 * 2 * 960 * 50_000, 5 * 162 * 50_000
    assert mixed < cost.shared.forwards <= mixed + standard
    assert cost.shared.stored_bytes == pytest.approx(3 * 960 * 3 * 5 * 50_000 * 200, rel=1e-3)


def test_stores_that_are_too_small_for_a_study_save_less(tmp_path: Path) -> None:
    limited = expand_study(read_study("table3"), "paper", tmp_path, student={"cache_limit": "10 GB"})
    cost = study_budget(filter_cells(limited, pairs=["VGG13/VGG8"]))
    # Of one seed a store of 10 GB has room for x of 960 epochs, which KD for so long asks before CutMix is begun.
    assert cost.limited.stored_bytes == pytest.approx(960 * 50_000 * 200, rel=1e-3)
    assert cost.shared.forwards < cost.limited.forwards < cost.uncached - cost.without_store
    alone = expand_study(read_study("precision"), "mini", tmp_path)
    assert study_budget(alone).without_store == 5 * 100 * 1000  # KD in float32, without a store


def test_the_figures_of_the_paper_are_found_where_it_has_them() -> None:
    found = paper_figure("table3", "kd+cutmix-pick@240", "VGG13/MobileNetV2", "cifar100")
    assert found is not None
    assert (found.mean, found.std) == (69.49, 0.32)
    assert paper_figure("table3", "kd+cutmix-pick@960", "ResNet32x4/ResNet8x4", "cifar100") is None
    assert paper_figure("table3", "kd@240", "VGG13/VGG8", "fashion-mini") is None
    imagenet = paper_figure("table5", "crd", "ResNet34/ResNet18", "imagenet")
    assert imagenet is not None
    assert imagenet.mean == 71.38


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12), st.sampled_from([0.9, 0.95, 0.99]))
def test_an_interval_is_students(values: list[float], level: float) -> None:
    found = interval_of_mean(values, level)
    assert found is not None
    error = statistics.stdev(values) / len(values) ** 0.5
    low, high = (-1, 1) if error == 0 else stats.t.interval(level, len(values) - 1)
    assert found.low == pytest.approx(found.mean + low * error, abs=1e-9)
    assert found.high == pytest.approx(found.mean + high * error, abs=1e-9)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (Contrast(of={"a": 1, "b": -1}, above=0), "held"),
        (Contrast(of={"b": 1, "a": -1}, above=0), "not held"),
        (Contrast(of={"a": 1, "b": -1}, below=2), "held"),
        (Contrast(of={"a": 1, "b": -1}, below=0.5), "not held"),
        (Contrast(of={"a": 1, "b": -1}, above=1), "undecided"),
        (Contrast(of={"a": 1, "b": -1, "c": -1, "d": 1}, above=0), "undecided"),  # d has but one of the seeds
        (Contrast(of={"a": 1, "none": -1}, above=0), "undecided"),
    ],
)
def test_a_claim_is_judged_by_its_interval_over_shared_seeds(test: Contrast, expected: str) -> None:
    accuracy = {
        "a": {0: 81.0, 1: 82.1, 2: 83.0},
        "b": {0: 80.0, 1: 81.0, 2: 82.1, 3: 0.0},
        "c": {0: 1.0},
        "d": {0: 1.0},
    }
    assert judge(test, accuracy).verdict == expected


def test_a_claim_holds_where_all_of_its_tests_do() -> None:
    accuracy = {"a": {0: 81.0, 1: 82.1}, "b": {0: 80.0, 1: 81.0}}
    held, failed, open_ = (
        judge(Contrast(of={"a": 1, "b": -1}, **bound), accuracy) for bound in ({"above": 0}, {"below": 0}, {"above": 1})
    )
    assert [verdict(some) for some in ([held], [held, open_], [held, open_, failed])] == [
        "held", "undecided", "not held"
    ]  # fmt: skip
    assert Claim(says="better", tests=(held.test,)).tests[0].words == "(a) - (b) > 0"


def test_faults_of_a_study_are_named(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(STUDY.replace('title = "Four students"', 'colour = "red"'))
    with pytest.raises(UsageError, match="title") as refused:
        read_study(str(own))
    assert "colour" in str(refused.value)
    with pytest.raises(UsageError, match=r"study: expected a TOML file or a study \(claims, .*table3.*given table9"):
        read_study("table9")
    with pytest.raises(UsageError, match=r"--profile of table3: expected paper, mini, got huge"):
        expand_study(read_study("table3"), "huge", tmp_path)
    cells = expand_study(read_study("table3"), "paper", tmp_path)
    with pytest.raises(UsageError, match=r"--pairs: expected WRN-40-2/WRN-16-2.*, got A/B"):
        filter_cells(cells, pairs=["A/B"])
    with pytest.raises(UsageError, match=r"--rows: expected teacher, .*, got KD\+cutout"):
        filter_cells(cells, rows=["KD", "KD+cutout"])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ('[[claims]]\nsays = "nothing"\ntests = []', r"claims\.0\.tests"),
        ('[[claims]]\nsays = "nothing"\ntests = [{ of = {}, above = 0 }]', r"claims\.0\.tests\.0\.of"),
        ('[[rows]]\nname = "a, b"', r"rows\.4\.name"),
        ('[[rows]]\nname = "teacher"\nkind = "teacher"\ntimes = 2', r"rows\.4: .*neither times nor train"),
        ('[[rows]]\nname = "x"\ntimes = [[1]]', r"rows\.4\.times"),
    ],
)
def test_a_study_that_would_do_nothing_or_something_else_is_refused(change: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f"{STUDY}\n{change}\n")
    with pytest.raises(UsageError, match=where):
        read_study(str(tmp_path / "own.toml"))


def test_pairs_that_no_setting_has_are_refused(pictures: Path, tmp_path: Path) -> None:
    write_study(tmp_path, pictures)
    study = read_study(str(tmp_path / "four.toml")).model_copy(update={"pairs": ("ResNet8/ResNet9",)})
    with pytest.raises(UsageError, match="pairs of four: expected ResNet8/ResNet8, got ResNet8/ResNet9"):
        expand_study(study, "own", tmp_path)


def test_what_is_chosen_of_a_study_is_trained_and_all_of_it_laid_out(tmp_path: Path) -> None:
    cells = expand_study(read_study("claims"), "mini", tmp_path, seeds=7)
    assert {len(cell.runs) for cell in cells if cell.row.kind == "student"} == {7}
    part = filter_cells(cells, rows=["teacher", "KD"], seeds=2)
    assert [(cell.row.name, len(cell.runs)) for cell in part] == [("teacher", 1), ("KD", 2)]
    # Fewer seeds than the setting has are a part of the study; its table misses the others.
    assert {len(cell.runs) for cell in expand_study(read_study("claims"), "mini", tmp_path, seeds=2)[1:]} == {5}


def test_loaded_teachers_are_told_apart_by_what_is_in_their_files(tmp_path: Path) -> None:
    study, folders = read_study("claims"), []
    for content in (b"one", b"two"):
        (tmp_path / "net.pth").write_bytes(content)
        cells = expand_study(study, "mini", tmp_path, weights={"resnet20": str(tmp_path / "net.pth")})
        folders.append(cells[0].runs[0].path.name)
    assert folders[0] != folders[1]
    assert all(name.startswith("teacher-resnet20-") for name in folders)
    with pytest.raises(UsageError, match=r"weights .*gone\.pth"):
        expand_study(study, "mini", tmp_path, weights={"resnet20": str(tmp_path / "gone.pth")})


@pytest.mark.parametrize("name", STUDIES)
def test_no_two_runs_of_a_study_have_one_name(name: str, tmp_path: Path) -> None:
    runs = runs_of(expand_study(read_study(name), "paper", tmp_path))
    assert len({run.name for run in runs}) == len(runs)


def test_missing_images_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    write_study(tmp_path, tmp_path / "nowhere")
    cells = expand_study(read_study(str(tmp_path / "four.toml")), "own", tmp_path / "studies")
    with pytest.raises(UsageError, match="nowhere"):
        train(cells, launcher("local", 1, tmp_path, {}), print)
    assert not (tmp_path / "studies").exists()


def test_a_table_says_how_much_of_it_is_missing(pictures: Path, tmp_path: Path) -> None:
    write_study(tmp_path, pictures)
    study = read_study(str(tmp_path / "four.toml"))
    sheets = lay_out(study, expand_study(study, "own", tmp_path / "studies"), tmp_path / "table")
    assert "partial: 0 of 5 runs" in sheets[0].title


@pytest.mark.parametrize(
    ("seeds", "expected", "n"),
    [
        (1, "undecided", None),  # before the first look
        (2, "undecided", 2),
        (3, "undecided", 3),  # between looks
        (4, "held", 4),
        (6, "held", 4),  # later ones change nothing
    ],
)
def test_a_claim_is_decided_at_its_looks_alone(seeds: int, expected: str, n: int | None) -> None:
    better = [2.0, 0.9, 1.1, 1.0, -9.0, -9.0]
    accuracy = {"a": {seed: 80 + better[seed] for seed in range(seeds)}, "b": dict.fromkeys(range(seeds), 80.0)}
    claim = Claim(says="better", tests=(Contrast(of={"a": 1, "b": -1}, above=0),), looks=(2, 4))
    (found,), stands = decide(claim, accuracy)
    assert stands == expected
    assert (found.interval.n if found.interval else None) == n


def test_a_row_of_several_lengths_is_a_row_of_each(tmp_path: Path) -> None:
    rows = {row.name: row.times for row in read_study("figure1").rows if row.train["loss"] == "kd"}
    assert list(rows.items())[4:] == [("KD", 1), ("KD x2", 2), ("KD x3", 3), ("KD x4", 4)]
    own = tmp_path / "own.toml"
    own.write_text('title = "T"\n[profiles]\nown = ["mini"]\n[[rows]]\nname = "KD"\ntimes = [1, 0]\n')
    with pytest.raises(UsageError, match=r"rows\.1\.times: .*given 0"):
        read_study(str(own))
