"""Run folders that are damaged, or come from somebody else: nothing in them is believed, followed or waited for."""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zarr
from click.testing import CliRunner
from kdcache.stages import train_student

from kdcache import checked_files, extensions, tensor_files
from kdcache.cli import cli
from kdcache.config import StudentConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.files import write_atomically
from kdcache.models import checkpoint
from kdcache.run.folder import FinishedRun, RunFolder, find_finished_runs
from kdcache.run.forward_count import ForwardCount, read_count
from kdcache.run.records import load_runs
from kdcache.run.statistics_store import StatisticsReader
from kdcache.run.writer import RunWriter
from tests import answers
from tests.alterations import MaliciousPickle
from tests.altered_runs import Interrupt
from tests.processes import outcome, start_process
from tests.run_files import change_config, change_json

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def unfinished(small: Settings, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was interrupted near the end of its second and last epoch."""
    out = tmp_path_factory.mktemp("unfinished") / "run"
    often = {"epochs": 2, "batch_size": 4, "checkpoint_minutes": 1e-6, "cache": "off", "workers": 0}
    with suppress(InterruptedError):
        settings = {**small, **often, "teacher": teacher, "aug": "cutmix-pick", "out": out}
        train_student(StudentConfig.load(**settings), Interrupt())
    return out


@pytest.fixture(scope="module")
def finished(unfinished: Path) -> Path:
    """The same run to its end."""
    shutil.copytree(unfinished, unfinished.with_name("finished"))
    return resume(unfinished.with_name("finished"))


@pytest.fixture
def run(unfinished: Path, tmp_path: Path) -> Path:
    """A copy of the unfinished run."""
    return shutil.copytree(unfinished, tmp_path / "run")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What kdcache warns of."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("kdcache").addHandler(handler)
    yield lines
    logging.getLogger("kdcache").removeHandler(handler)


def resume(path: Path) -> Path:
    return train_student(StudentConfig.load(out=path, resume=True)).path


def call(*words: object) -> tuple[int, str]:
    """Exit code and message of a command; an unexpected error is raised."""
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    if result.exception is None:
        return 0, result.output
    if not isinstance(result.exception, KdcacheError):
        raise result.exception
    return result.exception.exit_code, f"{result.output}{result.exception}"


# What is damaged is set right from the checkpoint, or named


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["environment.json", "metrics.jsonl", "model.safetensors", "statistics.zarr/zarr.json"]
)
def test_what_the_checkpoint_has_is_set_right(name: str, run: Path, finished: Path) -> None:
    flip(run / name)
    assert outcome(resume(run)) == outcome(finished)
    assert FinishedRun(run).read_environment() == FinishedRun(finished).read_environment()


def test_the_last_checkpoint_has_the_network_and_the_metrics(
    small: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**small, "teacher": teacher, "aug": "cutmix", "cache": "off", "out": tmp_path / "run"}

    def end(run: RunWriter) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch, suppress(InterruptedError):
        patch.setattr(RunWriter, "finish", end)
        train_student(StudentConfig.load(**settings))
    files = [tmp_path / "run" / name for name in ("model.safetensors", "metrics.jsonl")]
    before = [file.read_bytes() for file in files]
    for file in files:
        flip(file)
    resume(tmp_path / "run")
    assert [file.read_bytes() for file in files] == before


def test_the_precision_is_that_of_the_checkpoint(run: Path, finished: Path, warnings: list[str]) -> None:
    change = (run / "environment.json").read_text().replace('"precision": "float32"', '"precision": "bfloat16"')
    (run / "environment.json").write_text(change)
    change_config(run / "config.toml", lambda text: text.replace('precision = "float32"', 'precision = "auto"'))
    with pytest.raises(UsageError, match="--precision: expected float32, as in the run, got auto"):
        resume(run)  # as the checkpoint says
    (run / "environment.json").unlink()
    change_config(run / "config.toml", lambda text: text.replace('precision = "auto"', 'precision = "float32"'))
    assert outcome(resume(run)) == outcome(finished)
    assert any("environment.json is missing or damaged" in line for line in warnings)


def test_a_damaged_config_is_refused(run: Path) -> None:
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("seed = 0", "seed = 1"))
    for way in (lambda: resume(run), lambda: RunFolder(run).read_config()):
        with pytest.raises(UsageError, match=r"config\.toml, which is damaged or was altered"):
            way()


def test_settings_are_compared_with_the_checkpoint(run: Path) -> None:
    change_config(run / "config.toml", lambda text: text.replace("seed = 0", "seed = 1"))
    with pytest.raises(UsageError, match="--seed: expected 0, as in the run, got 1"):
        resume(run)


def test_lost_statistics_are_named_and_the_rest_is_the_same(run: Path, finished: Path, warnings: list[str]) -> None:
    (run / "statistics.zarr" / "d_x" / "c" / "0" / "0").unlink()
    (run / "statistics.zarr" / "picked" / "zarr.json").write_bytes(b"")
    resume(run)
    assert any("epoch 1 is damaged and cannot be computed again" in line for line in warnings)
    reader, whole = (StatisticsReader.open(path / "statistics.zarr") for path in (run, finished))
    with pytest.raises(KdcacheError, match="could not read epoch 1 of the statistics"):
        reader.epoch(0)
    assert (reader.epoch(1).picked == whole.epoch(1).picked).all()
    assert outcome(run)["network"] == outcome(finished)["network"]


def test_a_lost_count_of_teacher_forwards_is_unknown(run: Path, warnings: list[str]) -> None:
    flip(run / "teacher_forwards.count")
    assert FinishedRun(resume(run)).summary["teacher_forwards_lost"] is None
    assert any("teacher_forwards.count is missing or damaged" in line for line in warnings)


def test_the_count_is_written_to_no_file_that_was_there(tmp_path: Path) -> None:
    mine, path = tmp_path / "mine", tmp_path / "teacher_forwards.count"
    mine.write_text("sixty characters that somebody else has written and needs\n")
    os.link(mine, path)
    count = ForwardCount(path, 7)
    count.write(1)
    count.close()
    assert mine.read_text().startswith("sixty")
    assert read_count(path) == 8


# Figures


def copy_with_seeds(run: Path, folder: Path) -> None:
    for seed in ("0", "1"):
        shutil.copytree(run, folder / seed)
    change_config(folder / "1" / "config.toml", lambda text: text.replace("seed = 0", "seed = 1"))


def test_a_damaged_chunk_leaves_no_figure(finished: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    copy_with_seeds(finished, runs)
    assert call("analyze", "kl-ratio", runs, "--out", tmp_path / "whole")[0] == 0
    (runs / "1" / "statistics.zarr" / "kl_ratio" / "c" / "1" / "0").unlink()
    code, text = call("analyze", "kl-ratio", runs, "--out", tmp_path / "damaged")
    assert (code, "could not read epoch 2 of the statistics" in text) == (1, True)
    whole, damaged = (json.loads((tmp_path / name / "kl-ratio.json").read_text()) for name in ("whole", "damaged"))
    assert len(whole["kl_ratios"]) == 1
    assert damaged["kl_ratios"] == []
    assert "epoch 2" in damaged["damaged"][0]


def test_the_number_of_epochs_is_under_the_checksum(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    group = json.loads((copy / "statistics.zarr" / "zarr.json").read_text())
    group["attributes"]["checksums"].pop()
    (copy / "statistics.zarr" / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(KdcacheError, match="attributes that do not match their checksum"):
        StatisticsReader.open(copy / "statistics.zarr")


def test_a_damaged_summary_leaves_no_mean(finished: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    copy_with_seeds(finished, runs)
    flip(runs / "1" / "summary.json")
    code, text = call("report", runs, "--format", "markdown", "--samples", 0)
    assert code == 0
    assert "damaged | damaged" in text
    assert "summary.json, which is damaged" in text.replace("\\", "")
    call("report", runs, "--format", "json", "--samples", 0, "--out", tmp_path / "report.json")
    (group,) = json.loads((tmp_path / "report.json").read_text())["groups"]
    assert group["last_top1"] == {"n": 0, "mean": None, "std": None, "damaged": True}
    code, text = call("analyze", "curves", runs, "--out", tmp_path)
    assert (code, "damaged" in text) == (1, True)
    code, text = call("compare", runs, "--", finished)
    assert (code, "the summary of run" in text) == (2, True)


# Values


ODD = ("NaN", "1e999", "1" + 400 * "0", "null", "[]", '"x"', '"\\ud800"', "[" * 100_000, "{", "")


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", ["summary.json", "environment.json", "metrics.jsonl"])
def test_odd_values_give_one_clear_message(name: str, value: str, finished: Path, tmp_path: Path) -> None:
    for file in finished.glob("*.*"):
        if file.is_file():
            shutil.copy(file, tmp_path)
    text = (tmp_path / name).read_text()
    content = json.loads(text.splitlines()[-1] if name == "metrics.jsonl" else text)
    key = {"summary.json": "seconds", "environment.json": "threads", "metrics.jsonl": "seconds"}[name]
    del content["sha256"]
    content |= {"epoch": 1} if name == "metrics.jsonl" else {}
    assert key in content
    text = json.dumps({**content, key: "HERE"}).replace('"HERE"', value)
    with suppress(ValueError, RecursionError):  # with a valid checksum, where the value can have one
        document = json.loads(text)
        sealed = [document] if name == "metrics.jsonl" else document
        text = json.dumps({**document, "sha256": checked_files.digest(sealed)})
    (tmp_path / name).write_text(text)
    (problem,) = [line for line in load_runs([tmp_path]).problems if "statistics" not in line]
    assert problem.isprintable()
    assert len(problem) < 1200


@pytest.mark.parametrize("value", [1e308, -5, 100.5])
@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_an_accuracy_is_a_percentage(name: str, value: float, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    if name == "summary.json":
        change_json(copy / name, last_top1=value)
    else:
        first, *others = checked_files.read_lines(copy / name)
        checked_files.write_lines(copy / name, [{**first, "test_top1": value}, *others])
    code, text = call("compare", copy, "--", finished)
    assert (code, "is damaged" in text) == (2, True)


@pytest.mark.parametrize("change", [{"epoch": "x"}, {"seconds": None}, {"teacher_counts": [1, 2, 3]}, {"extra": 1}])
def test_odd_values_in_a_checkpoint_give_one_clear_message(change: Settings, run: Path) -> None:
    from kdcache import tensor_files
    from kdcache.run.checkpoint import FORMAT

    for path in (run / "checkpoints").iterdir():
        state, metadata = tensor_files.load(path, FORMAT)
        tensor_files.save(path, state, {**metadata, **change})
    with pytest.raises(KdcacheError, match="does not fit the run"):
        resume(run)


# Links, and what is not a file


ENTRIES = ("config.toml", "environment.json", "metrics.jsonl", "model.safetensors", "summary.json", "checkpoints")
OTHER_ENTRIES = ("curves.png", "teacher_forwards.count", "run.lock", "statistics.zarr")


@pytest.mark.parametrize("name", [*ENTRIES, *OTHER_ENTRIES])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_links_and_pipes_are_named_and_nothing_behind_them_changes(
    name: str, kind: str, unfinished: Path, tmp_path: Path
) -> None:
    run, elsewhere = shutil.copytree(unfinished, tmp_path / "runs" / "run"), tmp_path / "elsewhere"
    entry = run / name
    if entry.exists():
        os.replace(entry, elsewhere)
    else:
        elsewhere.write_text("of somebody else")
    if elsewhere.is_dir():
        (elsewhere / ".project.tmp").mkdir()
        (elsewhere / "epoch-0000009-step-0000000.safetensors").write_text("mine")
    entry.symlink_to(elsewhere) if kind == "link" else os.mkfifo(entry)
    before = {path: path.read_bytes() for path in tmp_path.glob("elsewhere/**/*") if path.is_file()}
    with pytest.raises(KdcacheError, match=f"{name}: expected .*, got a (symbolic link|FIFO)"):
        resume(run)
    assert find_finished_runs(run.parent) == []
    assert load_runs([run.parent]).problems
    assert {path: path.read_bytes() for path in tmp_path.glob("elsewhere/**/*") if path.is_file()} == before


def test_only_our_own_temporary_files_are_removed(run: Path) -> None:
    (run / "checkpoints" / ".project.tmp").mkdir()
    (run / ".notes.tmp").write_text("mine")
    (run / ".metrics.jsonl.0123abcd.tmp").write_text("left by a killed process")
    RunFolder(run).remove_temporary_files()
    assert (run / "checkpoints" / ".project.tmp").exists()
    assert (run / ".notes.tmp").exists()
    assert not (run / ".metrics.jsonl.0123abcd.tmp").exists()


@pytest.mark.parametrize("folder", [".", "checkpoints", "statistics.zarr"])
def test_what_a_library_began_to_write_when_it_was_killed_is_removed(folder: str, run: Path) -> None:
    before = sorted(run.rglob("*"))
    writing = start_process(write_and_die, run / folder / "file")
    writing.join()
    assert writing.exitcode == 9
    assert sorted(run.rglob("*")) != before
    RunFolder(run).remove_temporary_files()
    assert sorted(run.rglob("*")) == before


def write_and_die(path: Path) -> None:
    """Die while a library writes a file under a name of its own, as safetensors does."""

    def write(temporary: Path) -> None:
        temporary.with_name(".tmpA1b2C3").write_text("a part")
        os._exit(9)

    write_atomically(path, write)


@pytest.mark.parametrize("name", ["store", "answers"])
def test_a_store_in_a_run_folder_is_no_link(name: str, teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    place = answers.stored(copy) if name == "store" else copy / "answers"
    os.replace(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    for words in (("cache", "prune", copy, "--all"), ("cache", "info", copy), ("cache", "verify", copy)):
        code, text = call(*words)
        assert (code, "got a symbolic link. Name a store in another place with --store." in text) == (2, True)


# Code


def test_code_named_by_a_run_is_not_imported(run: Path, finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(extensions, "_trusted", set())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("open('ran', 'w')\n")
    (tmp_path / "own.toml").write_text('[student]\nmodel = "python:theirs:network"\n')
    copy = shutil.copytree(finished, tmp_path / "copy")
    for folder in (run, copy):
        change_config(folder / "config.toml", lambda text: text.replace('"resnet8"', '"python:theirs:network"'))
    shutil.rmtree(run / "checkpoints")
    settings = ("--dataset", RunFolder(copy).read_config().dataset, "--image-size", 32)
    for words in (
        ("student-train", "--resume", "--out", run),
        ("student-train", "--config", "own.toml", *settings, "--loss", "ce", "--out", "new"),
    ):
        code, text = call(*words)
        assert (code, "add --trust python:theirs:network" in text) == (2, True), text
    for words in (("report", copy, "--samples", 0), ("compare", copy, "--", finished), ("export", copy)):
        call(*words)
    assert not (tmp_path / "ran").exists()
    with suppress(UsageError):
        StudentConfig.load("own.toml", model="python:theirs:network")
    assert extensions.is_trusted("python:theirs:network")  # the user named it


def write_version_2(statistics: Path, ran: Path) -> None:
    """Replace statistics by a store of zarr's version 2 whose filters would unpickle."""
    shutil.rmtree(statistics)
    statistics.mkdir()
    (statistics / ".zgroup").write_text('{"zarr_format": 2}')
    (statistics / ".zattrs").write_text(json.dumps({"schema": "kdcache-statistics-4", "checksums": ["0"]}))
    (statistics / "kl_ratio").mkdir()
    array = {"zarr_format": 2, "shape": [1, 1], "chunks": [1, 1], "dtype": "|O", "fill_value": "", "order": "C"}
    filters = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}]
    (statistics / "kl_ratio" / ".zarray").write_text(json.dumps({**array, "compressor": None, "filters": filters}))
    (statistics / "kl_ratio" / "0.0").write_bytes(pickle.dumps(MaliciousPickle(ran)))


def change_metadata(name: str, **values: object) -> Callable[[Path, Path], None]:
    def change(statistics: Path, ran: Path) -> None:
        path = statistics / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


CODECS = [{"name": "bytes"}, {"name": "numcodecs.pickle", "configuration": {"protocol": 4}}]
FOREIGN: dict[str, Callable[[Path, Path], None]] = {
    "version 2": write_version_2,
    "codec": change_metadata("kl_ratio/zarr.json", codecs=CODECS),
    "sharding": change_metadata("kl_ratio/zarr.json", codecs=[{"name": "sharding_indexed", "configuration": {}}]),
    "transformer": change_metadata("kl_ratio/zarr.json", storage_transformers=[{"name": "x"}]),
    "objects": change_metadata("kl_ratio/zarr.json", data_type="string"),
    "huge chunks": change_metadata(
        "kl_ratio/zarr.json", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [2**20, 2**20]}}
    ),
    "deep": lambda statistics, ran: (statistics / "kl_ratio" / "zarr.json").write_text("[" * 100_000) and None,
}


@pytest.mark.parametrize("way", FOREIGN)
def test_foreign_metadata_are_refused_before_zarr_sees_them(
    way: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, ran = shutil.copytree(finished, tmp_path / "copy"), tmp_path / "ran"
    FOREIGN[way](copy / "statistics.zarr", ran)
    opened: list[str] = []
    open_array = zarr.open_array

    def record(*arguments: Any, path: str, **more: Any) -> zarr.Array:
        opened.append(path)
        return open_array(*arguments, path=path, **more)

    monkeypatch.setattr(zarr, "open_array", record)
    code, text = call("analyze", "kl-ratio", copy, "--out", tmp_path)
    assert (code, "could not read" in text) == (1, True)
    assert "kl_ratio" not in opened
    assert not ran.exists()


def test_a_run_is_read_and_resumed_where_the_teacher_it_names_is_damaged(
    run: Path, finished: Path, teacher: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    os.mkfifo(damaged / "config.toml")
    copy = shutil.copytree(finished, tmp_path / "copy")
    for folder in (run, copy):
        change_config(folder / "config.toml", lambda text: text.replace(str(teacher), str(damaged)))
    for words in (("export", copy, "--out", tmp_path / "exported.safetensors"), ("compare", copy, "--", finished)):
        assert call(*words)[0] == 0
    assert call("student-train", "--resume", "--out", run, "--teacher", teacher)[0] == 0


@pytest.mark.parametrize("name", ["a\\u0000b", "a" * 300, "b/" * 3000])
def test_a_path_that_cannot_exist_gives_one_clear_message(
    name: str, finished: Path, teacher: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    change_config(copy / "config.toml", lambda text: text.replace(str(teacher), name))
    code, text = call("analyze", "disagreement", "--teacher", copy)
    assert (code, "\n" in text) == (2, False)
    code, text = call("student-train", "--teacher", teacher, "--dataset", f"folder:{name}", "--out", tmp_path / "new")
    assert code == 2
    assert text.isprintable()


def test_a_network_that_computes_no_numbers_predicts_nothing(finished: Path, pictures: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    network = copy / "model.safetensors"
    state, metadata = tensor_files.load(network, checkpoint.FORMAT)
    tensor_files.save(network, state, {**metadata, "mean": [1e300] * 3})
    code, text = call("predict", copy, next(pictures.rglob("*.png")))
    assert (code, "expected three numbers from 0 to 1" in text) == (2, True), text
    tensor_files.save(network, state, {**metadata, "std": [1e-300] * 3})
    code, text = call("predict", copy, next(pictures.rglob("*.png")))
    assert (code, "expected finite numbers, got [nan" in text) == (1, True), text


@pytest.mark.parametrize("stated", ["x" * 10_000, {"a": 1}, None])
def test_what_is_stated_for_a_checksum_is_not_printed(stated: object, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "summary.json").write_text(json.dumps({"sha256": stated}))
    code, text = call("predict", copy, tmp_path)
    assert (code, "expected one in the file, got" in text, len(text) < 1000) == (2, True, True)


@pytest.mark.parametrize("chunk", [[1, 2**10], [1, 2**29]])
def test_an_epoch_of_claimed_size_is_not_read(chunk: list[int], finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    change_metadata("kl_ratio/zarr.json", shape=[2, 2**29], chunk_grid=grid)(copy / "statistics.zarr", tmp_path)
    code, text = call("analyze", "kl-ratio", copy, "--out", tmp_path)
    assert (code, "got chunks of shape" in text) == (1, True), text


def test_changed_values_are_read_where_the_checksum_is_valid(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    change_json(copy / "summary.json", last_top1=12.5)
    assert FinishedRun(copy).summary["last_top1"] == 12.5
