"""The examples of docs/extending.md, taken from the page, added to a copy of the package and trained with."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    shutil.copytree(ROOT / "kdcache", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("stages", "configs", "data"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
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


def run(package: Path, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdcache", *words]
    done = subprocess.run(
        command, env=environment, cwd=package.parent, capture_output=True, text=True, timeout=300, check=False
    )
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
