"""Studies: spread out into runs, carried out, judged, and laid out beside the paper's figures."""

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdcache.errors import UsageError
from kdcache.study.claims import Claim, Contrast, judge, verdict
from kdcache.study.compare import interval_of_mean
from kdcache.study.costs import study_cost
from kdcache.study.launch import launcher
from kdcache.study.paper import paper_figure
from kdcache.study.plan import read_study
from kdcache.study.reproduce import lay_out, train
from kdcache.study.spread import runs_of, spread_out
from tests.studies import STUDY, write_study

STUDIES = sorted(file.stem for file in (Path(__file__).parents[1] / "configs" / "studies").iterdir())


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_that_ships_can_be_spread_out(name: str, tmp_path: Path) -> None:
    study = read_study(name)
    assert {"paper", "mini"} <= study.profiles.keys()
    for profile in study.profiles:
        assert all(cell.runs for cell in spread_out(study, profile, tmp_path))


def test_table_3_is_seven_pairs_eight_rows_three_seeds(tmp_path: Path) -> None:
    cells = spread_out(read_study("table3"), "paper", tmp_path)
    distilled = [run for cell in cells for run in cell.runs if run.teacher is not None]
    assert len({run.path for run in distilled}) == 7 * 8 * 3
    cost = study_cost(cells)
    # x at 240 epochs is one question of each image and epoch, CutMix two, CutMix-pick three; long runs take 960 epochs.
    features = 240 * (1 + 3) + 960 * 3
    students = 240 * (1 + 2 + 3) + 960 * (1 + 3) + features
    assert cost.online == 50_000 * (7 * 3 * students + 5)
    assert cost.features == 50_000 * 7 * 3 * features
    # Of five teachers, two x' in each of 960 epochs of three seeds, and at most every standard view.
    mixed, standard = 5 * 3 * 2 * 960 * 50_000, 5 * 162 * 50_000
    assert mixed < cost.shared <= mixed + standard


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
    with pytest.raises(UsageError, match=r"study: allowed claims, .*table3.*given table9"):
        read_study("table9")
    with pytest.raises(UsageError, match=r"--profile of table3: allowed paper, mini, given huge"):
        spread_out(read_study("table3"), "huge", tmp_path)
    with pytest.raises(UsageError, match=r"--pairs: allowed WRN-40-2/WRN-16-2.*, given A/B"):
        spread_out(read_study("table3"), "paper", tmp_path, pairs=["A/B"])


@pytest.mark.parametrize("name", STUDIES)
def test_no_two_runs_of_a_study_have_one_name(name: str, tmp_path: Path) -> None:
    runs = runs_of(spread_out(read_study(name), "paper", tmp_path))
    assert len({run.name for run in runs}) == len(runs)


def test_missing_images_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    write_study(tmp_path, tmp_path / "nowhere")
    cells = spread_out(read_study(str(tmp_path / "four.toml")), "own", tmp_path / "studies")
    with pytest.raises(UsageError, match="nowhere"):
        train(cells, launcher("local", 1, tmp_path, {}), print)
    assert not (tmp_path / "studies").exists()


def test_a_table_says_how_much_of_it_is_missing(pictures: Path, tmp_path: Path) -> None:
    write_study(tmp_path, pictures)
    study = read_study(str(tmp_path / "four.toml"))
    sheets = lay_out(study, spread_out(study, "own", tmp_path / "studies"), tmp_path / "table")
    assert "partial: 0 of 4 runs" in sheets[0].title


def test_some_rows_of_a_study_keep_the_claims_about_them_alone(tmp_path: Path) -> None:
    part = read_study("claims").only(["KD", "KD+mixup", "KD+CutMix", "CRD"])
    assert [row.name for row in part.rows] == ["KD", "KD+mixup", "KD+CutMix", "CRD"]
    assert [claim.says[0] for claim in part.claims] == ["3"]
    with pytest.raises(UsageError, match=r"--rows of claims: allowed teacher, CE, .*, given KD\+cutout"):
        read_study("claims").only(["KD", "KD+cutout"])


def test_a_row_of_several_lengths_is_a_row_of_each(tmp_path: Path) -> None:
    rows = {row.name: row.times for row in read_study("figure1").rows if row.train["loss"] == "kd"}
    assert list(rows.items())[4:] == [("KD", 1), ("KD x2", 2), ("KD x3", 3), ("KD x4", 4)]
    own = tmp_path / "own.toml"
    own.write_text('title = "T"\n[profiles]\nown = ["mini"]\n[[rows]]\nname = "KD"\ntimes = [1, 0]\n')
    with pytest.raises(UsageError, match=r"rows\.1\.times: .*given 0"):
        read_study(str(own))
