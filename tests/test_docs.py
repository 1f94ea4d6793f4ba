"""The pages: their commands, options, imports, paths and links exist."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import kdcache
from kdcache.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/*.md")])
# Help pages are generated; the changelog names what was removed, the results what was measured with earlier versions.
CURRENT = [
    page for page in PAGES if page.name not in ("cli.md", "CHANGELOG.md") and ROOT / "docs/results" not in page.parents
]

FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\((?!https?:)([^)\s]+)\)")
PATH = re.compile(r"`((?:benchmarks|configs|data|docs|examples|kdcache|stages|tests)/[\w./-]*)`")
DOTTED = re.compile(r"`(kdcache(?:\.\w+)+)`")

by_page = pytest.mark.parametrize("page", CURRENT, ids=[str(page.relative_to(ROOT)) for page in CURRENT])


def blocks(page: Path, language: str) -> list[str]:
    return [text for _, name, text in FENCED.findall(page.read_text("utf-8")) if name == language]


def command_lines(page: Path) -> Iterator[str]:
    """Every command line of kdcache on a page, in blocks and in running text."""
    text = page.read_text("utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    text = FENCED.sub("", text)
    lines += re.findall(r"^ {4}(kdcache .*)", text, re.MULTILINE)
    lines += re.findall(r"`(kdcache [^`]*)`", text.replace("\n", " "))
    for line in lines:
        for command in re.split(r";|&&|\|", line.partition(" #")[0]):
            if found := re.search(r"\bkdcache( .*|$)", command.strip()):
                yield found[1]


def parse(line: str) -> None:
    """Parse a command line without running it; option values are not converted."""
    command: click.Command = cli
    arguments = shlex.split(line)
    while True:
        context = click.Context(command, **cli.context_settings)  # click keeps the help option that a context names
        _, arguments, _ = command.make_parser(context).parse_args(arguments)
        if not isinstance(command, click.Group) or not arguments:
            return
        subcommand = command.get_command(context, arguments[0])
        if subcommand is None:
            raise click.UsageError(f"no command {arguments[0]}")
        command, arguments = subcommand, arguments[1:]


@by_page
def test_commands_and_options_exist(page: Path) -> None:
    for line in command_lines(page):
        try:
            parse(line)
        except click.ClickException as error:
            pytest.fail(f"kdcache{line}: {error.format_message()}")


def test_an_unknown_command_or_option_is_noticed() -> None:
    for line in (" student-trian", " student-train --aug none --no-such-option", " cache plan --ema 0.9"):
        with pytest.raises(click.ClickException):
            parse(line)


@by_page
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    if page.name == "extending.md":
        return  # the blocks there are parts of modules, which test_extending.py puts in place and runs
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kdcache":
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not has(module, name.name)] == [], node.module
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kdcache":
                assert hasattr(kdcache, node.attr), node.attr


def test_the_reference_has_all_public_names_and_no_others() -> None:
    reference = (ROOT / "docs" / "reference.rst").read_text("utf-8")
    documented = re.findall(
        r"^\.\. auto(?:function|class|exception|module):: (?:kdcache\.)?(\w+)", reference, re.MULTILINE
    )
    assert sorted(documented) == sorted(kdcache.PUBLIC)


def has(module: object, name: str) -> bool:
    """Whether a module has a name, or a package a module."""
    try:
        return hasattr(module, name) or bool(importlib.import_module(f"{module.__name__}.{name}"))  # type: ignore[attr-defined]
    except ImportError:
        return False


@by_page
def test_paths_and_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []
    for name in DOTTED.findall(text):
        module, _, attribute = name.rpartition(".")
        assert has(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [slug(heading) for heading in headings], link


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
