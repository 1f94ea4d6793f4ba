"""What commands write: where, and what reaches the terminal."""

import io
import logging
import os
import sys
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest

from kdcache import datasets
from kdcache.cli import cli, main, prepare_output
from kdcache.datasets.manifest import _file
from kdcache.errors import KdcacheError
from kdcache.files import require_writable_file, write_atomically, write_text
from kdcache.report.tables import TextTable, show
from tests.samples import refusal, write_pictures


@pytest.fixture
def odd_places(tmp_path: Path) -> dict[str, Path]:
    """Paths of which none may be replaced by a file."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to("folder")
    return {name: tmp_path / name for name in ("folder", "fifo", "zero", "link")} | {"device": Path("/dev/kdcache-x")}


@pytest.mark.parametrize("name", ["folder", "fifo", "zero", "link", "device"])
def test_nothing_but_a_file_is_replaced(name: str, odd_places: dict[str, Path]) -> None:
    place = odd_places[name]
    before = os.lstat(place) if name != "device" else None
    assert "expected the path of a file" in refusal(lambda: require_writable_file(place))
    message = refusal(lambda: write_text(place, "text"), KdcacheError)
    assert message.startswith(f"could not write {place}: expected a file, got a ")
    assert before == (os.lstat(place) if name != "device" else None)


@pytest.mark.parametrize(
    "command", ["data pack fashion-mini", "report {} --samples 0 --out", "export {} --format safetensors --out"]
)
def test_commands_refuse_another_target_before_they_work(
    command: str, teacher: Path, odd_places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word.format(teacher) for word in command.split()]
    monkeypatch.setattr(datasets, "read", None)  # it would be called by a command that works first
    for place in (odd_places["fifo"], odd_places["folder"]):
        message = refusal(lambda place=place: cli.main([*words, str(place)], standalone_mode=False))  # type: ignore[misc]
        assert message.startswith(f"could not write {place}: expected the path of a file")


def test_an_interrupted_pack_is_not_resumed_from_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".x.h5.packing")
    words = ["data", "pack", "fashion-mini", str(tmp_path / "x.h5")]
    assert "got a device or FIFO" in refusal(lambda: cli.main(words, standalone_mode=False), KdcacheError)


def test_the_first_error_of_a_write_is_the_one_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # as a file system does that can only be read
    message = refusal(lambda: write_atomically(tmp_path / "x", lambda path: None), KdcacheError)
    assert message.startswith(f"could not write {tmp_path / 'x'}: got ")


# The cache folder


@pytest.mark.parametrize("folder", ["", " ", "relative", "~/cache"])
def test_a_cache_folder_is_absolute(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    assert _file("x").parent == tmp_path / ("cache" if folder == "~/cache" else ".cache") / "kdcache"


def test_a_manifest_that_is_no_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = datasets.read(f"folder:{write_pictures(tmp_path)}").train.fingerprint
    manifest = _file(str(tmp_path / "train"))
    manifest.unlink()
    os.mkfifo(manifest)
    assert datasets.read(f"folder:{tmp_path}").train.fingerprint == expected


# The terminal

ODD_NAME = "a\nb\x1b[31m"


def test_names_are_printed_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    show(TextTable(ODD_NAME, (ODD_NAME, "number"), [(ODD_NAME, "1")]))
    data = write_pictures(tmp_path / ODD_NAME)
    for command in ("info", "check"):
        cli.main(["data", command, f"folder:{data}"], standalone_mode=False)
    cli.main(["data", "pack", f"folder:{data}", str(data / "x.h5")], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    # Title, header and cell of the table; dataset and source; what was checked; what was packed.
    assert sum(r"a\nb\x1b[31m" in line for line in printed.splitlines()) == 3 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("student-train", "Resume a training with --resume."),
        ("reproduce", "again to continue."),
        ("demo", "stopped."),
    ],
)
def test_a_command_that_is_stopped_says_how_to_go_on(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdcache", "--debug", command])
    monkeypatch.setattr("kdcache.cli.cli", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr("kdcache.cli.handle_signals", lambda: None)
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 130
    assert capsys.readouterr().err.endswith(f"{said}\n")


def test_what_the_command_line_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        prepare_output(debug=False)
        logging.getLogger("kdcache").warning("%s is read", ODD_NAME)
        warnings.warn("Glyph 29483 missing from font(s) DejaVu Sans.", stacklevel=1)
    assert not seen
    show(TextTable("classes", ("class",), [("\u732b",)]))
    output.flush()
    errors.flush()
    assert b"\\u732b" in output.buffer.getvalue()  # type: ignore[attr-defined]
    assert errors.buffer.getvalue() == b"kdcache: a\\nb\\x1b[31m is read\n"  # type: ignore[attr-defined]
