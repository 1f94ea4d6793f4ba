"""What the benchmarks share: command-line options, tables of medians, and pages that name their command and machine."""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdcache.compute import Compute
from kdcache.environment import describe_environment
from kdcache.files import write_text

__all__ = ["make_page", "make_parser", "ratios", "spread", "table", "write_page"]

sys.path.append(str(Path(__file__).parents[1]))  # for the modules of `tests`; kdcache is the installed one

FACTS = ("device", "threads", "precision", "torch", "zarr", "platform", "kdcache")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the option ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="PAGE", help="file to write instead of the standard output")
    return parser


def table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a Markdown table."""
    lines = (columns, ["---"] * len(columns), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format a median with minimum and maximum."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"


def ratios(above: Iterable[float], below: Iterable[float]) -> list[float]:
    """Divide paired measurements."""
    return [one / other for one, other in zip(above, below, strict=True)]


def make_page(title: str, *parts: str) -> str:
    """Make a page of paragraphs and tables, followed by command, date and machine."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    facts = describe_environment(Compute.choose())
    machine = ", ".join(f"{fact} {facts[fact]}" for fact in FACTS)
    footer = f"Command: `{command}`, {time.strftime('%Y-%m-%d')}.\nMachine: {machine}."
    return "\n\n".join([f"# {title}", *parts, footer]) + "\n"


def write_page(out: Path | None, title: str, *parts: str) -> None:
    """Write such a page, or print it without a file."""
    text = make_page(title, *parts)
    if out:
        write_text(out, text)
    else:
        print(text, end="")
