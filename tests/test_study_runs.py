"""Studies carried out by real processes: shared answers, kills and interrupts, runs that fail, and each launcher."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.processes import kdcache, outcome
from tests.studies import RUNS, begin_study, table, trainings, under_way, until, write_study


@pytest.fixture(scope="module")
def unbroken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a study that nothing happened to."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, pictures)
    ended = begin_study(folder).ended()
    assert ended.returncode == 0, ended.stderr
    return folder


def test_students_of_a_study_share_the_answers_of_their_teacher(unbroken: Path) -> None:
    cells = json.loads((unbroken / "studies" / "four-own.json").read_text())["cells"]
    assert [cell["wanted"] for cell in cells] == [1] * 4
    # x and two candidates of 90 images in 8 epochs: what the CutMix-pick student alone would ask.
    assert sum(cell["teacher_forwards"] for cell in cells) <= 1.1 * 3 * 90 * 8
    again = begin_study(unbroken).ended()
    assert "4 of 4 runs are finished already" in again.stdout


def test_a_study_killed_and_interrupted_ends_as_one_that_was_not(
    unbroken: Path, pictures: Path, tmp_path: Path
) -> None:
    write_study(tmp_path, pictures)
    runs = tmp_path / "studies" / "small"
    study = begin_study(tmp_path)
    until(lambda: under_way(runs / RUNS["KD"]))
    study.kill()  # its trainings go on without it
    assert trainings(tmp_path)

    study = begin_study(tmp_path)  # which waits for them
    until(lambda: under_way(runs / RUNS["KD+CutMix-pick"]))
    for number in trainings(runs / RUNS["KD+CutMix-pick"]):
        os.kill(number, signal.SIGKILL)
    study.kill()

    left = set(trainings(tmp_path))
    study = begin_study(tmp_path)
    until(lambda: set(trainings(tmp_path)) - left)
    assert study.process.pid is not None
    os.kill(study.process.pid, signal.SIGINT)
    assert study.ended().returncode == 130
    assert set(trainings(tmp_path)) <= left

    assert begin_study(tmp_path).ended().returncode == 0
    for name in RUNS.values():
        assert outcome(runs / name) == outcome(unbroken / "studies" / "small" / name)
    assert table(tmp_path) == table(unbroken)


@pytest.mark.parametrize(
    ("name", "options"),
    [("local", ()), ("slurm", ("--launcher-option", "cluster=local")), ("ray", ())],
)
def test_a_study_that_was_terminated_goes_on_and_a_run_that_fails_is_tried_once_more(
    name: str, options: tuple[str, ...], unbroken: Path, pictures: Path, tmp_path: Path
) -> None:
    write_study(tmp_path, pictures, **{'aug = "cutmix" ': 'aug = "cutmix", lr = 1e30 '})
    runs, killed = tmp_path / "studies" / "small", RUNS["KD+CutMix-pick"]
    shutil.copytree(unbroken / "studies" / "small" / "teacher-resnet8", runs / "teacher-resnet8")
    study = begin_study(tmp_path, "--launcher", name, *options)
    until(lambda: under_way(runs / RUNS["KD"]))
    study.process.terminate()
    assert study.ended().returncode == 143
    assert not trainings(tmp_path)

    study = begin_study(tmp_path, "--launcher", name, *options)
    until(lambda: under_way(runs / killed))
    for number in trainings(runs / killed):
        os.kill(number, signal.SIGKILL)
    ended = study.ended()
    assert ended.returncode == 1
    assert re.search(rf"{re.escape(f'small/{killed}')}: failed with -9 .*tried again", ended.stdout)
    assert re.search(r"cutmix-lr-1e.*failed with 1 .*(nan|inf).*given up", ended.stdout)
    assert "failed: small/resnet8-resnet8-kd-cutmix-lr-" in ended.stderr
    assert "1 of the runs failed" in ended.stderr
    assert "partial: 4 of 5 runs" in (tmp_path / "studies" / "four-own.md").read_text()
    assert outcome(runs / killed) == outcome(unbroken / "studies" / "small" / killed)


def copies(run: Path, folder: Path, accuracies: dict[int, float], **settings: str) -> list[str]:
    """Make finished runs of a finished one, that differ in seed, accuracy and some settings."""
    made = []
    for seed, accuracy in accuracies.items():
        copy = folder / f"{'-'.join(settings.values())}-{seed}"
        shutil.copytree(run, copy)
        text = (copy / "config.toml").read_text()
        for name, value in {"seed": str(seed), **settings}.items():
            text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
        (copy / "config.toml").write_text(text)
        summary = json.loads((copy / "summary.json").read_text())
        (copy / "summary.json").write_text(json.dumps({**summary, "last_top1": accuracy}))
        made.append(str(copy))
    return made


def test_two_sides_are_compared_by_seed_and_unfair_ones_are_named(unbroken: Path, tmp_path: Path) -> None:
    run = unbroken / "studies" / "small" / RUNS["KD"]
    left = copies(run, tmp_path, {0: 71.0, 1: 75.0, 2: 73.5}, alpha="0.9")
    right = copies(run, tmp_path, {0: 70.0, 1: 74.2, 2: 72.6}, alpha="0.5")
    document = json.loads(kdcache("compare", "--format", "json", *left, "--", *right, cwd=tmp_path).stdout)
    # Differences of 1.0, 0.8 and 0.9: mean 0.9, standard error 0.1 / sqrt(3), and 4.303 is the quantile of t for 2.
    assert document["paired"]["low"] == pytest.approx(0.9 - 4.30265 * 0.1 / 3**0.5, abs=1e-4)
    assert document["difference"]["low"] < 0 < document["difference"]["high"]
    assert document["unfair"] == []
    longer = copies(run, tmp_path, {5: 76.0, 6: 76.5}, epochs="16")
    told = kdcache("compare", *longer, "--", *right, cwd=tmp_path).stdout
    assert "warning: not the same on both sides: epochs: 16 against 8" in told
    assert "needs two runs, and one of a seed" in told  # no seed on both sides


def test_a_comparison_needs_finished_runs_on_both_sides(unbroken: Path, tmp_path: Path) -> None:
    run = unbroken / "studies" / "small" / RUNS["KD"]
    one_sided = kdcache("compare", str(run), cwd=tmp_path)
    assert (one_sided.returncode, "run folders on both sides of --" in one_sided.stderr) == (2, True)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "summary.json").unlink()
    refused = kdcache("compare", str(run), "--", str(unfinished), cwd=tmp_path)
    assert refused.returncode == 2
    assert "right side: expected at least one finished run, got none" in refused.stderr
