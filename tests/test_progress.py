"""What a training says while it runs: figures of an epoch, and how long it will still take."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from kdcache.stages import precompute_answers, train_student, train_teacher
from rich.console import Console

from kdcache.config import StudentConfig, TeacherConfig
from kdcache.report import progress
from kdcache.report.progress import Bar, Lines, Reporter
from kdcache.report.time_left import TimeLeft, format_duration
from kdcache.run.writer import RunWriter
from kdcache.training import EpochProgress
from tests.processes import outcome

Settings = dict[str, Any]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7530, "2 h 5 min"),
        (86400 * 3 + 50, "3 d"),
    ],
)
def test_a_duration_has_the_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_time_left_counts_all_that_happens_in_an_epoch_and_nothing_of_earlier_sessions() -> None:
    clock = Clock()
    left = TimeLeft(total=1000, done=400, clock=clock)  # epochs of 100 images, of which four are done
    assert str(left) == ""
    clock.now, left.done = 130.0, 450
    assert str(left) == "5 min 30 s left"  # 0.6 s an image
    clock.now, left.done = 180.0, 500  # trained, evaluated and saved
    left.end_part()
    assert str(left) == "6 min 40 s left"  # 80 s an epoch
    for _ in range(4):
        clock.now, left.done = clock.now + 80, left.done + 100
        left.end_part()
    assert str(left) == "1 min 20 s left"
    left.done = 1000
    assert str(left) == ""


def test_the_time_left_follows_a_pace_that_changes() -> None:
    clock = Clock()
    left = TimeLeft(total=100, clock=clock)
    for part in range(30):
        clock.now, left.done = clock.now + (9 if part < 15 else 1), left.done + 1
        left.end_part()
    assert str(left) == "1 min 10 s left"
    assert left.speed("views") == "1.0 views/s"
    left.update(3, 50)  # another work
    assert left.speed("views") == ""


LINE = (
    r"epoch (\d)/3  loss (\S+)  top-1 training (\S+) %, validation (\S+) %, test (\S+) %"
    r"(?:, best (\S+) % in epoch (\d))?  lr 0\.\d+  (\d+) images/s(?:  (.*) left)?"
)


def test_a_line_for_each_epoch_has_what_is_recorded(
    small: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TeacherConfig.load(**{**small, "epochs": 3, "val_fraction": 0.2, "out": tmp_path / "run"})
    run = train_teacher(config, Lines())
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"teacher resnet8 on {config.dataset} in float32 on cpu -> {run.path}"
    found = [re.fullmatch(LINE, line) for line in lines]
    assert all(found), lines
    metrics, so_far = run.read_metrics(), []
    for match, epoch in zip(found, metrics, strict=True):
        number, loss, training, validation, test, best, best_in, _, left = match.groups()  # type: ignore[union-attr]
        assert (int(number), loss) == (epoch.epoch, f"{epoch.train_loss:.3f}")
        accuracies = epoch.train_top1, epoch.val_top1, epoch.test_top1
        assert [training, validation, test] == [f"{value:.2f}" for value in accuracies]
        so_far.append(epoch)
        highest = max(so_far, key=lambda line: line.val_top1 or 0)
        expected = (None, None) if highest is epoch else (f"{highest.val_top1:.2f}", str(highest.epoch))
        assert (best, best_in) == expected
        assert (left is None) == (epoch.epoch == 3)


def test_an_epoch_without_evaluation_has_the_training_accuracy_alone(
    small: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**small, "epochs": 2, "evaluate_every": 2, "loss": "ce", "aug": "mixup", "out": tmp_path / "run"}
    train_student(StudentConfig.load(**settings), Lines())
    told, _, first, second = capsys.readouterr().out.splitlines()
    assert told == "training top-1 is that on x', by the larger part of the label: x is not trained on"
    assert re.search(r"  top-1 training \S+ %  lr ", first)
    assert re.search(r"  top-1 training \S+ %, test \S+ %  lr ", second)


class Stopping(Reporter):
    """Stops a training in its second epoch, after the first checkpoint there."""

    def step(self, event: EpochProgress) -> None:
        self.events = getattr(self, "events", 0) + 1
        if self.events == 5:
            raise KeyboardInterrupt


class Beginning(Lines):
    """Keeps what it is told at the beginning."""

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        super().begin(run, images, images_done)
        self.done_before = self.training.done


def test_a_resumed_training_counts_from_its_checkpoint_to_the_same_bits(small: Settings, tmp_path: Path) -> None:
    often = {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 1e-6}  # every 20 of the 45 steps
    settings = {**small, **often, "loss": "ce", "aug": "standard"}
    with pytest.raises(KeyboardInterrupt):
        train_student(StudentConfig.load(**settings, out=tmp_path / "run"), Stopping())
    reporter = Beginning()
    run = train_student(StudentConfig.load(**settings, out=tmp_path / "run", resume=True), reporter)
    assert run.summary["resumed"] == [{"epoch": 2, "step": 20}]
    assert reporter.done_before == 90 + 2 * 20
    whole = train_student(StudentConfig.load(**settings, out=tmp_path / "whole"))
    assert outcome(run.path) == outcome(whole.path)
    assert whole.read_metrics()[1].train_top1 is not None


def test_the_bar_of_a_narrow_terminal_shows_all_figures(small: Settings, tmp_path: Path) -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=60, color_system=None)) as reporter:
        run = train_teacher(TeacherConfig.load(**{**small, "out": tmp_path / "run"}), reporter)
    last = screen.getvalue().split("epoch 1/1")[-1]
    (epoch,) = run.read_metrics()
    assert f"loss {epoch.train_loss:.3f}" in last
    assert " ".join(last.split()).count(f"training {epoch.train_top1:.2f} %, test {epoch.test_top1:.2f} %") == 1
    assert "logits" in screen.getvalue()


def test_precomputing_says_how_fast_it_is(
    small: Settings, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    settings = {**small, "epochs": 3, "teacher": teacher, "aug": "cutmix", "store": str(tmp_path / "store")}
    precompute_answers(StudentConfig.load(**settings), Lines())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "logits of 90 of 540 views are stored"
    for number, line in enumerate(lines[1:5], 2):
        assert re.fullmatch(rf"logits of {90 * number} of 540 views are stored  \d+ views/s  .* left", line)
    assert re.fullmatch(r"logits of 540 of 540 views are stored  \d+ views/s", lines[5])
