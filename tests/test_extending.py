"""The examples of docs/extending.md, taken from the page, added to a copy of the package and trained with."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
SECTIONS = {title: body for title, body in (part.split("\n", 1) for part in PAGE.split("\n## ")[1:]) if "```sh" in body}


def blocks(section: str, language: str) -> Iterator[str]:
    for found in re.finditer(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL):
        yield found[1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package as it is installed: recipes, presets and data inside it."""
    copy = tmp_path / "site" / "kdcache"
    shutil.copytree(ROOT / "kdcache", copy)  # with its compiled files
    for folder in ("stages", "configs", "data"):
        shutil.copytree(ROOT / folder, copy / folder)
    return copy


def add(package: Path, block: str) -> None:
    """Follow the first line of a block: a new file, code at the end of one, or a line in a table."""
    head, code = block.split("\n", 1)
    file, instruction = re.fullmatch(r"# kdcache/(\S+?),? \(?(.*?)\)?", head).groups()  # type: ignore[union-attr]
    path = package / file
    if instruction == "new file":
        assert not path.exists()
        path.write_text(code)
    elif instruction == "at the end":
        path.write_text(f"{path.read_text()}\n\n{code}")
    else:
        table = f"\n{instruction.removeprefix('in ')} |= {{\n"
        text = path.read_text()
        assert text.count(table) == 1
        path.write_text(text.replace(table, f"{table}    {code}"))


def import_from(package: Path) -> None:
    """Import the package anew from here; what it needs is imported already, which saves seconds."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "kdcache"]:
        del sys.modules[name]
    sys.path.insert(0, str(package.parent))
    sys.meta_path.insert(0, PathFinder)  # before the finder of an editable installation
    processes.cli = import_module("kdcache.cli")
    assert processes.cli.__file__ == str(package / "cli" / "__init__.py")


def run(package: Path, words: list[str]) -> str:
    done = processes.kdcache(*words, cwd=package.parent, prepare=partial(import_from, package))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_trains_a_student(section: str, package: Path, small: dict[str, object], teacher: Path) -> None:
    for block in blocks(section, "python"):
        add(package, block)
    (command,) = blocks(section, "sh")
    store, out = package.parent / "store.zarr", package.parent / "run"
    settings = {**small, "teacher": teacher, "out": out, "store": store}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    assert "student resnet8: top-1" in run(package, [*shlex.split(command)[1:], *options])
    if section == "An augmentation":  # its name is part of the names of tables in the store
        checked = run(package, ["cache", "verify", str(teacher), "--store", str(store), "--all", "--device", "cpu"])
        assert "grid-mask-1" in checked
        assert "grid-mask-1" in run(package, ["cache", "info", str(teacher), "--store", str(store)])


def test_the_page_has_an_example_of_each_kind() -> None:
    assert list(SECTIONS) == ["A loss on logits", "A loss on features", "An augmentation", "A criterion"]
