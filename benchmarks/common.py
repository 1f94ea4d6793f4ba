"""What the benchmarks' pages have in common."""

import statistics
import sys
import time
from pathlib import Path

from kdcache.compute import Compute
from kdcache.environment import describe_environment
from kdcache.files import write_text

__all__ = ["footer", "put", "ratios", "spread"]

FACTS = ("device", "threads", "precision", "torch", "zarr", "platform", "kdcache")


def footer() -> str:
    """Say which command was run, when, and on which machine."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    facts = describe_environment(Compute.choose())
    machine = ", ".join(f"{fact} {facts[fact]}" for fact in FACTS)
    return f"\nCommand: `{command}`, {time.strftime('%Y-%m-%d')}.\nMachine: {machine}."


def put(page: list[str], out: Path | None) -> None:
    """Write a page with its footer, or print it."""
    text = "\n".join([*page, footer()]) + "\n"
    if out:
        write_text(out, text)
    else:
        print(text, end="")


def spread(values: list[float], digits: int = 1) -> str:
    """Write a median with the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Divide measurement by measurement."""
    return [one / other for one, other in zip(above, below, strict=True)]
