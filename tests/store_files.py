"""What writers leave in stores and run folders: chunks, commit records, and writes that were not completed."""

from collections.abc import Iterator
from pathlib import Path

import zarr


def read_chunks(store: Path) -> dict[str, bytes]:
    """Read every chunk of logits and every commit record of a store."""
    paths = [path for path in store.rglob("*") if "/c/" in str(path) and path.suffix != ".partial" and path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def read_committed(store: Path) -> dict[str, bytes]:
    """Read the chunks that have a commit record, and these records."""
    chunks = read_chunks(store)
    records = {name for name in chunks if "/commits/" in name}
    return {name: chunks[name] for name in chunks if name.replace("/logits/", "/commits/") in records}


def partial_writes(folder: Path) -> Iterator[Path]:
    """Find what a writer has begun and not completed, in run folders and stores.

    These are temporary files, chunks of logits without a commit record, tables without a chunk, and statistics of an
    epoch that is not marked as written.
    """
    yield from (path for path in folder.rglob("*") if path.suffix in (".tmp", ".partial"))
    for table in (path for name in ("epoch-*/*", "clean") for path in folder.rglob(name) if path.is_dir()):
        chunks = [path.relative_to(table / "logits") for path in table.glob("logits/c/*/0")]
        yield from (table / "logits" / chunk for chunk in chunks if not (table / "commits" / chunk).exists())
        if not chunks:
            yield table
    for store in folder.rglob("statistics.zarr"):
        written = zarr.open_group(store, mode="r").attrs.get("epochs_written", 0)
        yield from (chunk for chunk in store.glob("*/c/*") if int(chunk.name) >= int(str(written)))
