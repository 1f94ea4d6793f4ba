"""Logits that travel: pushed with a card, pulled, and trained on without the teacher, from a folder, http and s3."""

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from kdcache.stages import precompute_answers, train_student, train_teacher

from kdcache.answers.card import CARD, AnswerCard, StoredFile, describe_views, read_card
from kdcache.answers.card_store import open_answers
from kdcache.answers.fingerprint import digest
from kdcache.answers.location import StoreLocation
from kdcache.answers.pulled import AbsentTeacher
from kdcache.answers.store import CHECKSUMMED_ATTRIBUTES
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.report.progress import Reporter
from kdcache.run.answers import find_store, pull_answers, push_answers
from kdcache.run.find import stores_of
from kdcache.run.folder import EpochMetrics, FinishedRun
from tests.answers import stored
from tests.processes import outcome, start_ranks
from tests.samples import refusal

ROWS = 90
EPOCHS, KINDS = 2, ("cutmix-1", "cutmix-2", "standard")
CHUNK = "replay/seed-0/epoch-0001/cutmix-1/logits/c/0/0"


class Pushed(NamedTuple):
    """Pushed answers, the settings of their students, and what a student with the teacher at hand came to."""

    folder: Path
    settings: dict[str, Any]
    teacher: FinishedRun
    expected: dict[str, Any]


def added_by_tests(teacher: Path) -> Callable[[str, list[str]], list[str]]:
    """Leave out of a copy what trainings of other tests have stored."""
    own = stored(teacher)

    def ignored(folder: str, names: list[str]) -> list[str]:
        if Path(folder) == own.parent:
            return [name for name in names if not name.startswith(own.name)]
        return [name for name in names if name == "replay"]

    return ignored


@pytest.fixture(scope="module")
def pushed(small: dict[str, Any], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    place = tmp_path_factory.mktemp("pushed")
    run = FinishedRun(Path(shutil.copytree(teacher, place / "teacher", ignore=added_by_tests(teacher))))
    settings = {**small, "epochs": EPOCHS, "aug": "cutmix-pick"}
    student = train_student(StudentConfig.load(**settings, teacher=run.path, out=place / "student"))
    push_answers(run, find_store(run.path, None), str(place / "answers"), "CC BY 4.0")
    assert student.summary["teacher_forwards"] > 0
    return Pushed(place / "answers", settings, run, outcome(student.path))


def train(of: Pushed, where: object, out: Path, reporter: Reporter | None = None, **more: Any) -> FinishedRun:
    return train_student(StudentConfig.load(**{**of.settings, "answers": str(where), "out": out, **more}), reporter)


class Stopping(Reporter):
    """Stops a training after its first epoch."""

    def end_epoch(self, metrics: EpochMetrics) -> None:
        raise KeyboardInterrupt


class Handler(SimpleHTTPRequestHandler):
    """Notes the path and the size of what is sent."""

    seen: list[tuple[str, int]]

    def do_GET(self) -> None:
        super().do_GET()
        file = Path(self.translate_path(self.path))
        self.seen.append((self.path.removeprefix("/"), file.stat().st_size if file.is_file() else 0))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(pushed: Pushed) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The answers over http, and the requests so far."""
    pytest.importorskip("obstore")
    seen: list[tuple[str, int]] = []
    handler = type("Counting", (Handler,), {"seen": seen})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(pushed.folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", seen
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kdcache" / "answers"


def test_the_card_says_what_the_answers_are(pushed: Pushed) -> None:
    card = read_card(StoreLocation(pushed.folder))
    assert (card.network, card.epoch, card.license, card.rows) == ("resnet8", 1, "CC BY 4.0", ROWS * (EPOCHS * 3 + 1))
    assert card.top1 == pushed.teacher.summary["last_top1"]
    assert card.views == ["clean views", "epochs 1-2 of view seed 0: cutmix-1, cutmix-2, standard"]
    files = {str(path.relative_to(pushed.folder)) for path in pushed.folder.rglob("*") if path.is_file()}
    assert card.files.keys() == files - {CARD}
    assert card.size == sum((pushed.folder / key).stat().st_size for key in card.files)
    shown = CliRunner().invoke(cli, ["cache", "info", str(pushed.folder)]).output
    parts = (
        "network: resnet8",
        "license: CC BY 4.0",
        "fingerprint: padding: 4",
        "; ".join(card.views),
        f"{len(files) - 1} files",
    )
    assert [part for part in parts if part not in shown] == []


def test_views_are_described_by_epochs_and_seed() -> None:
    tables = ["clean", *(f"replay/seed-1/epoch-{epoch:04d}/standard" for epoch in (0, 1, 2, 6))]
    assert describe_views(tables) == ["clean views", "epochs 1-3, 7 of view seed 1: standard"]


def test_a_student_needs_no_teacher(pushed: Pushed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = Path(shutil.copytree(pushed.folder, tmp_path / "alone"))
    with caplog.at_level(logging.INFO, "kdcache"):
        run = train(pushed, alone, tmp_path / "run")
    assert "cannot be written" not in caplog.text  # nothing is to be kept there
    assert outcome(run.path) == pushed.expected
    assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, ROWS * EPOCHS * 3)
    card, store = open_answers(alone)
    origin = run.read_environment()["origin"]
    assert origin["teacher"] == card.fingerprint["teacher"] == store.fingerprint["teacher"]
    assert origin["answers"] == card.files["zarr.json"].sha256
    assert run.config.answers == str(alone)  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "run"]


def test_clean_views_are_read_too(pushed: Pushed, tmp_path: Path) -> None:
    at_hand = {**pushed.settings, "aug": "none", "teacher": pushed.teacher.path}
    runs = [
        train_student(StudentConfig.load(**at_hand, out=tmp_path / "a")),
        train(pushed, pushed.folder, tmp_path / "b", aug="none"),
    ]
    assert outcome(runs[0].path) == outcome(runs[1].path)
    assert runs[1].summary["teacher_forwards"] == 0


def test_a_student_has_another_size_than_the_absent_teacher(small: dict[str, Any], tmp_path: Path) -> None:
    settings = {**small, "crop": "resized", "aug": "cutmix"}
    teacher = train_teacher(TeacherConfig.load(**{**settings, "aug": None, "out": tmp_path / "teacher"}))
    settings["image_size"] = 40
    at_hand = train_student(StudentConfig.load(**settings, teacher=teacher.path, out=tmp_path / "at hand"))
    push_answers(teacher, find_store(teacher.path, None), str(tmp_path / "pushed"))
    run = train_student(StudentConfig.load(**settings, answers=str(tmp_path / "pushed"), out=tmp_path / "run"))
    assert outcome(run.path) == outcome(at_hand.path)
    assert (run.summary["teacher_forwards"], run.summary["cache_hits"]) == (0, 2 * ROWS)


def test_an_absent_teacher_raises_if_it_is_called(pushed: Pushed) -> None:
    import torch

    card, store = open_answers(pushed.folder)
    with pytest.raises(KdcacheError, match="expected the logits of every view"):
        AbsentTeacher(card, store, torch.device("cpu"))(torch.zeros(1, 3, 32, 32))


def test_over_http_each_file_is_fetched_once_as_it_is_needed(
    pushed: Pushed, server: tuple[str, list[tuple[str, int]]], cache: Path, tmp_path: Path
) -> None:
    url, seen = server
    with pytest.raises(KeyboardInterrupt):
        train(pushed, url, tmp_path / "run", Stopping(), resume=True)
    epochs = {path.split("/")[2] for path, _ in seen if path.startswith("replay")}
    assert epochs == {"epoch-0000"}  # it was stopped in the first
    resumed = train(pushed, url, tmp_path / "run", resume=True)
    assert outcome(resumed.path) == pushed.expected
    card = read_card(StoreLocation(pushed.folder))
    fetched = [path for path, _ in seen if path != CARD]
    assert len(fetched) == len(set(fetched))
    # For each table of an epoch: the metadata of two arrays, a commit record and a chunk.
    second = [path for path in fetched if "epoch-0001" in path]
    assert len(second) == 4 * len(KINDS)
    assert sum(size for path, size in seen if path in second) == sum(card.files[path].size for path in second)

    seen.clear()
    assert outcome(train(pushed, url, tmp_path / "again").path) == pushed.expected
    assert [path for path, _ in seen] == [CARD]
    kept = next(cache.glob(f"*/{CHUNK}"))
    kept.write_bytes(b"damage")
    train(pushed, url, tmp_path / "repaired")
    assert [path for path, _ in seen] == [CARD, CARD, CHUNK]
    assert kept.read_bytes() == (pushed.folder / CHUNK).read_bytes()


def test_without_a_cache_folder_they_are_fetched_in_each_epoch(
    pushed: Pushed, server: tuple[str, list[tuple[str, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert outcome(train(pushed, server[0], tmp_path / "run").path) == pushed.expected


def test_two_processes_share_what_they_fetch(
    pushed: Pushed, server: tuple[str, list[tuple[str, int]]], cache: Path, tmp_path: Path
) -> None:
    url, seen = server
    settings = {**pushed.settings, "answers": url, "out": tmp_path / "run"}
    ended = [rank.wait() for rank in start_ranks(2, "student-train", settings)]
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr
    assert FinishedRun(tmp_path / "run").summary["teacher_forwards"] == 0
    fetched = [path for path, _ in seen if path != CARD]
    assert len(fetched) == len(set(fetched)) > 4 * len(KINDS)


def test_pushed_to_s3_and_pulled_from_there(pushed: Pushed, bucket: str, tmp_path: Path, cache: Path) -> None:
    url = f"{bucket}/{tmp_path.name}"
    store = stores_of(pushed.teacher.path).open()[0].location.where
    done = CliRunner().invoke(cli, ["cache", "push", str(pushed.teacher.path), url, "--store", store])
    assert done.exit_code == 0, done.output
    assert "cutmix-2, standard: 630 rows" in done.output
    assert outcome(train(pushed, url, tmp_path / "run").path) == pushed.expected
    # Into the run folder of the teacher, whose store they are then.
    other = shutil.copytree(pushed.teacher.path, tmp_path / "teacher", ignore=shutil.ignore_patterns("answers"))
    done = CliRunner().invoke(cli, ["cache", "pull", url, "--out", str(other)])
    assert done.exit_code == 0, done.output
    config = StudentConfig.load(**pushed.settings, teacher=other, out=tmp_path / "with teacher")
    run = train_student(config)
    assert (outcome(run.path), run.summary["teacher_forwards"]) == (pushed.expected, 0)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are written; writing ends when there are as many as the last one says."""
    written: list[str] = []
    write = StoreLocation.write

    def note(self: StoreLocation, key: str, content: bytes) -> None:
        if written.count("stop") and len(written) > 10:
            raise KeyboardInterrupt
        written.append(key)
        write(self, key, content)

    monkeypatch.setattr(StoreLocation, "write", note)
    return written


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_an_interrupted_copy_goes_on(direction: str, pushed: Pushed, writes: list[str], tmp_path: Path) -> None:
    target = tmp_path / "target"

    def copy() -> AnswerCard:
        if direction == "pull":
            return pull_answers(str(pushed.folder), target)[0]
        return push_answers(pushed.teacher, find_store(pushed.teacher.path, None), str(target))

    writes.append("stop")
    with pytest.raises(KeyboardInterrupt):
        copy()
    assert not (target / CARD).exists()
    assert not (target / "zarr.json").exists()
    assert "run it again" in refusal(lambda: open_answers(target))
    first = set(writes) - {"stop"}
    writes.clear()
    card = copy()
    assert len(writes) == len(set(writes))
    assert first | set(writes) == card.files.keys() | {CARD}
    assert first.isdisjoint(writes)
    assert writes[-2:] == ["zarr.json", CARD]
    writes.clear()
    copy()
    assert writes == [CARD]


def altered(pushed: Pushed, place: Path, key: str, change: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(pushed.folder, place)
    (place / key).write_bytes(change((place / key).read_bytes()))
    return place


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:-1] + b"?"])
def test_a_damaged_chunk_is_refused_by_name(change: Callable[[bytes], bytes], pushed: Pushed, tmp_path: Path) -> None:
    place, target = altered(pushed, tmp_path / "damaged", CHUNK, change), tmp_path / "target"
    assert f"{CHUNK} in {place} is damaged" in refusal(lambda: pull_answers(str(place), target), KdcacheError)
    assert not (target / CARD).exists()
    assert not (target / CHUNK).exists()
    assert [path.name for path in target.rglob("*.partial")] == []
    found = refusal(lambda: train(pushed, place, tmp_path / "run"), KdcacheError)
    assert f"{CHUNK} in {place} is damaged" in found
    (place / CHUNK).unlink()
    assert "got nothing" in refusal(lambda: pull_answers(str(place), target), KdcacheError)


def test_an_altered_card_is_refused(pushed: Pushed, tmp_path: Path) -> None:
    place = altered(pushed, tmp_path / "card", CARD, lambda content: content.replace(b"CC BY", b"CC XX"))
    assert "SHA-256 of card.json" in refusal(lambda: open_answers(place))
    (place / CARD).write_bytes(b"[")
    assert "expected JSON" in refusal(lambda: open_answers(place))


@pytest.mark.parametrize("key", ["../evil", "/evil", "clean/../../evil", "replay/.hidden", "other"])
def test_a_card_cannot_name_files_elsewhere(key: str, pushed: Pushed, tmp_path: Path) -> None:
    card = read_card(StoreLocation(pushed.folder))
    worse = card.model_copy(update={"files": {**card.files, key: card.files["zarr.json"]}})
    place = altered(pushed, tmp_path / "evil", CARD, lambda _: worse.to_json())
    assert "files in card.json" in refusal(lambda: pull_answers(str(place), tmp_path / "target"))


def test_a_place_with_anything_else_is_refused(pushed: Pushed, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    assert "got other files, such as notes.txt" in refusal(lambda: pull_answers(str(pushed.folder), tmp_path / "other"))
    store = Path(shutil.copytree(pushed.folder, tmp_path / "store"))
    attributes = json.loads((store / "zarr.json").read_text())
    (store / "zarr.json").write_text(json.dumps(attributes, indent=1))
    assert "got another store" in refusal(lambda: pull_answers(str(pushed.folder), store))


def test_what_is_damaged_or_incomplete_is_not_pushed(
    pushed: Pushed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(pushed.teacher.path, tmp_path / "teacher"))
    run, store = FinishedRun(folder), find_store(folder, None)
    place = Path(store.location.where)
    shutil.rmtree(place / "replay/seed-0/epoch-0001/cutmix-2/commits/c")
    assert push_answers(run, store, str(tmp_path / "pushed")).rows == 6 * ROWS
    assert "left out, since they are incomplete: replay/seed-0/epoch-0001/cutmix-2" in caplog.text
    assert "cutmix-2 " not in refusal(lambda: train(pushed, tmp_path / "pushed", tmp_path / "run"))
    (place / CHUNK).write_bytes(b"?" * (place / CHUNK).stat().st_size)
    found = refusal(lambda: push_answers(run, find_store(folder, None), str(tmp_path / "new")), KdcacheError)
    assert f"chunk 0 of {CHUNK.removesuffix('/logits/c/0/0')}" in found
    assert not (tmp_path / "new").exists()


def test_answers_of_another_teacher_are_refused(pushed: Pushed, small: dict[str, Any], tmp_path: Path) -> None:
    other = train_teacher(TeacherConfig.load(**{**small, "seed": 1, "out": tmp_path / "other"}))
    store = find_store(pushed.teacher.path, None)
    assert f"expected logits of {other.path}" in refusal(lambda: push_answers(other, store, str(tmp_path / "new")))
    found = refusal(lambda: pull_answers(str(pushed.folder), other.path))
    assert f"expected those of the teacher {other.path}" in found


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 3}, "expected epoch 3 of view seed 0: cutmix-1, cutmix-2, standard, got clean views; epochs 1-2"),
    ({"view_seed": 5}, "expected epochs 1-2 of view seed 5"),
    ({"aug": "mixup"}, "expected epochs 1-2 of view seed 0: mixup-1"),
    ({"candidates": 3}, "expected epochs 1-2 of view seed 0: cutmix-3"),
    ({"val_fraction": 0.1}, "--val-fraction: expected 0.1, got 0.0"),
    ({"store_dtype": "float32"}, "dtype: expected float32, got float16"),
    ({"image_size": 40}, "padding: expected 5, got 4"),
    ({"crop": "resized"}, "padding: got 4"),
    ({"loss": "at+kd", "aug": "standard"}, "no value with --loss at, which reads features"),
    ({"loss": "rkd+kd"}, "dtype: expected vectors-float16, got float16"),
    ({"store": "s"}, "no value with --store"),
    ({"cache": "replay"}, "no value with --cache"),
    ({"teacher": "runs/teacher"}, "no value with --teacher"),
    ({"teacher_best": True}, "no value with --teacher-best"),
    ({"loss": "ce", "aug": "cutmix"}, "with --loss ce, which has no teacher"),
]


@pytest.mark.parametrize(("more", "part"), REFUSED, ids=[str(more) for more, _ in REFUSED])
def test_what_the_card_does_not_hold_is_refused_at_the_start(
    more: dict[str, Any], part: str, pushed: Pushed, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        train(pushed, pushed.folder, tmp_path / "run", **more)
    assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_commands_that_need_a_teacher_refuse_answers(pushed: Pushed, tmp_path: Path) -> None:
    config = StudentConfig.load(**pushed.settings, answers=str(pushed.folder))
    assert "expected --teacher, got --answers" in refusal(lambda: precompute_answers(config))
    run = train(pushed, pushed.folder, tmp_path / "run")
    done = CliRunner().invoke(cli, ["analyze", "disagreement", "--teacher", str(run.path)])
    assert "one that learned from --answers" in str(done.exception)


def computed_elsewhere(pushed: Pushed, place: Path) -> str:
    """Make answers that state another number of threads."""
    shutil.copytree(pushed.folder, place)
    root = json.loads((place / "zarr.json").read_text())
    attributes = root["attributes"]
    attributes["made_with"]["threads"] += 1
    attributes["sha256"] = digest({name: attributes[name] for name in CHECKSUMMED_ATTRIBUTES})
    content = json.dumps(root).encode()
    (place / "zarr.json").write_bytes(content)
    card = read_card(str(place))
    card = card.model_copy(update={"files": {**card.files, "zarr.json": StoredFile.of(content)}})
    (place / CARD).write_bytes(card.to_json())
    return str(place)


def test_answers_are_outside_of_the_run(pushed: Pushed, tmp_path: Path) -> None:
    shutil.copytree(pushed.folder, tmp_path / "run" / "answers")
    found = refusal(lambda: train(pushed, tmp_path / "run" / "answers", tmp_path / "run", overwrite=True))
    assert "expected a folder outside of --out" in found


def test_a_run_with_a_teacher_at_hand_is_not_resumed_without_one() -> None:
    without, at_hand = StudentConfig(answers="here"), StudentConfig(teacher=Path("runs/teacher"))
    assert without.differences(StudentConfig(answers="there")) == []
    assert without.differences(at_hand) == ["--answers: expected no value, as in the run, got here"]


def test_looking_for_answers_leaves_nothing_behind(tmp_path: Path) -> None:
    assert "got none" in refusal(lambda: read_card(str(tmp_path / "nowhere")))
    assert not StoreLocation(tmp_path / "nowhere").holds_store()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_from_moved_answers_but_no_others(pushed: Pushed, tmp_path: Path) -> None:
    place = Path(shutil.copytree(pushed.folder, tmp_path / "here"))
    options = {**pushed.settings, "out": tmp_path / "run", "resume": True}
    with pytest.raises(KeyboardInterrupt):
        train(pushed, place, tmp_path / "run", Stopping())
    place.rename(tmp_path / "there")
    assert "expected a folder or URL with a card.json" in refusal(lambda: train_student(StudentConfig.load(**options)))
    with pytest.raises(UsageError, match="no value with --teacher"):
        StudentConfig.load(**options, teacher=pushed.teacher.path)
    other = {"answers": computed_elsewhere(pushed, tmp_path / "elsewhere")}
    assert "run: answers: expected" in refusal(lambda: train_student(StudentConfig.load(**options, **other)))
    run = train_student(StudentConfig.load(**options, answers=str(tmp_path / "there")))
    assert outcome(run.path) == pushed.expected
