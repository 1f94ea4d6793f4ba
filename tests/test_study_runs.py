"""Studies trained by real processes: shared caches, kills and interrupts, runs that fail, and each launcher."""

import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.kills import Study, kill_and_resume
from tests.processes import kdcache, outcome
from tests.run_files import change_config, change_json
from tests.studies import RUNS, is_resumable, start_study, training_processes, wait_until, write_study


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a study that was not interrupted."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, pictures)
    ended = start_study(folder).wait()
    assert ended.returncode == 0, ended.stderr
    return folder


def test_students_of_a_study_share_the_cache_of_their_teacher(uninterrupted: Path) -> None:
    cells = json.loads((uninterrupted / "studies" / "four-own.json").read_text())["cells"]
    assert [cell["planned_runs"] for cell in cells] == [1] * 4
    # x and two candidates of 90 images in 4 epochs: the forwards of the CutMix-pick student alone.
    assert sum(cell["teacher_forwards"] for cell in cells) <= 1.1 * 3 * 90 * 4
    again = start_study(uninterrupted).wait()
    assert "4 of 4 runs are already finished" in again.stdout


def test_a_study_that_was_killed_and_interrupted_has_the_same_results(
    uninterrupted: Path, pictures: Path, tmp_path: Path
) -> None:
    counts = kill_and_resume(Study(pictures, uninterrupted, tmp_path), 3, Random(0))
    assert [counts[way] for way in ("alone", "with its trainings", "interrupted")] == [1, 1, 1]
    assert counts["trainings left running"] >= 1
    assert counts["equal"] == counts["finished"]


@pytest.mark.parametrize(
    "launcher", [(), ("--launcher", "slurm", "--launcher-option", "cluster=local"), ("--launcher", "ray")]
)
def test_a_terminated_study_resumes_and_a_killed_run_is_tried_once_more(
    launcher: tuple[str, ...], uninterrupted: Path, pictures: Path, tmp_path: Path
) -> None:
    write_study(tmp_path, pictures)
    runs, killed = tmp_path / "studies" / "small", RUNS["KD+CutMix-pick"]
    for finished in ("teacher-resnet8", RUNS["KD+CutMix"], RUNS["KD+CutMix-pick (random)"]):
        shutil.copytree(uninterrupted / "studies" / "small" / finished, runs / finished)
    study = start_study(tmp_path, *launcher)
    wait_until(lambda: is_resumable(runs / RUNS["KD"]))
    study.process.terminate()
    assert study.wait().returncode == 143
    assert not training_processes(tmp_path)

    study = start_study(tmp_path, *launcher)
    wait_until(lambda: is_resumable(runs / killed) and training_processes(runs / killed))
    for number in training_processes(runs / killed):
        os.kill(number, signal.SIGKILL)
    ended = study.wait()
    assert ended.returncode == 0
    assert re.search(rf"{re.escape(f'small/{killed}')}: failed with exit code -9 .*trying again", ended.stdout)
    assert outcome(runs / killed) == outcome(uninterrupted / "studies" / "small" / killed)


def test_a_run_that_fails_again_is_given_up(uninterrupted: Path, pictures: Path, tmp_path: Path) -> None:
    write_study(tmp_path, pictures, **{'aug = "cutmix" ': 'aug = "cutmix", lr = 1e30 '})
    shutil.copytree(uninterrupted / "studies" / "small", tmp_path / "studies" / "small")
    ended = start_study(tmp_path).wait()
    assert ended.returncode == 1
    assert re.search(r"cutmix-lr-1e.*failed with exit code 1 .*(nan|inf).*trying again", ended.stdout)
    assert re.search(r"cutmix-lr-1e.*failed with exit code 1 .*(nan|inf).*giving up", ended.stdout)
    assert "failed: small/resnet8-resnet8-kd-cutmix-lr-" in ended.stderr
    assert "runs that failed: 1" in ended.stderr
    assert "partial: 4 of 5 runs" in (tmp_path / "studies" / "four-own.md").read_text()


def copies(run: Path, folder: Path, accuracies: dict[int, float], **settings: str) -> list[str]:
    """Copy a finished run with other seeds and accuracies, and some other settings."""
    made = []
    for seed, accuracy in accuracies.items():
        copy = folder / f"{'-'.join(settings.values())}-{seed}"
        shutil.copytree(run, copy)
        for name, value in {"seed": str(seed), **settings}.items():
            line = partial(re.sub, rf"(?m)^{name} = .*$", f"{name} = {value}")
            change_config(copy / "config.toml", line)
        change_json(copy / "summary.json", last_top1=accuracy)
        made.append(str(copy))
    return made


def test_two_sides_are_compared_by_seed_and_differences_are_reported(uninterrupted: Path, tmp_path: Path) -> None:
    run = uninterrupted / "studies" / "small" / RUNS["KD"]
    left = copies(run, tmp_path, {0: 71.0, 1: 75.0, 2: 73.5}, alpha="0.9")
    right = copies(run, tmp_path, {0: 70.0, 1: 74.2, 2: 72.6}, alpha="0.5")
    document = json.loads(kdcache("compare", "--format", "json", *left, "--", *right, cwd=tmp_path).stdout)
    # Differences of 1.0, 0.8 and 0.9: mean 0.9, standard error 0.1 / sqrt(3), and 4.303 is the quantile of t for 2.
    assert document["paired"]["low"] == pytest.approx(0.9 - 4.30265 * 0.1 / 3**0.5, abs=1e-4)
    assert document["difference"]["low"] < 0 < document["difference"]["high"]
    assert document["different_settings"] == ["alpha: 0.9 versus 0.5"]
    longer = copies(run, tmp_path, {5: 76.0, 6: 76.5}, epochs="16")
    output = kdcache("compare", *longer, "--", *right, cwd=tmp_path).stdout
    assert "warning: settings differ: epochs: 16 versus 4" in output
    assert "needs two common seeds" in output
    environment = json.loads(Path(right[1], "environment.json").read_text())
    origin = {**environment["origin"], "teacher": "0123456789abcdef"}
    change_json(Path(right[1], "environment.json"), origin=origin, precision="bfloat16")
    one = kdcache("compare", left[0], "--", right[1], cwd=tmp_path).stdout
    assert re.search(r"left - right .*-3\.20.*none: needs two runs", one)
    found = re.findall("warning: settings differ: (.*?):(.*)", one)
    assert [name for name, _ in found] == ["teacher", "alpha", "precision"]
    assert "(01234567)" in dict(found)["teacher"]


def test_a_comparison_needs_finished_runs_on_both_sides(uninterrupted: Path, tmp_path: Path) -> None:
    run = uninterrupted / "studies" / "small" / RUNS["KD"]
    one_sided = kdcache("compare", str(run), cwd=tmp_path)
    assert (one_sided.returncode, "run folders on both sides of --" in one_sided.stderr) == (2, True)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "summary.json").unlink()
    refused = kdcache("compare", str(run), "--", str(unfinished), cwd=tmp_path)
    assert refused.returncode == 2
    assert "right side: expected at least one finished run, got none" in refused.stderr
