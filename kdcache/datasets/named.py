"""Pictures that a user names one by one: files, folders and patterns."""

import glob
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from kdcache.datasets.listing import pictures_below
from kdcache.datasets.sources import Files
from kdcache.errors import UsageError, printable, problem

__all__ = ["NamedPictures", "named_pictures"]

PATTERN_CHARS = frozenset("*?[")


class NamedPictures(NamedTuple):
    """The files to read, in the order in which they were named.

    Attributes
    ----------
    files : Files
        Those in a folder are in the order of their paths.
    problems : list of str
        A line for each folder that cannot be listed or has no picture, and for each pattern that matches nothing.
    others : list of str
        A line for each folder, about what else lies in it.
    """

    files: Files
    problems: list[str]
    others: list[str]


def named_pictures(paths: Sequence[str]) -> NamedPictures:
    """List files, the pictures in folders at any depth, and what patterns such as ``photos/*.jpg`` match.

    A file that is named is listed whatever its suffix, and even if it is missing: reading it says what is wrong.

    Raises
    ------
    UsageError
        If a path is empty, or nothing is left to read.
    """
    if "" in paths:
        expected = "the path of a file or folder, or a pattern such as 'photos/*.jpg'"
        raise UsageError(problem("path of images", expected=expected, got="an empty one"))
    problems: list[str] = []
    others: list[str] = []
    matches = [_matches(path, problems) for path in paths]
    every = [*chain.from_iterable(matches)]
    missing = [problem(f"image {path} does not exist") for path in every if not os.path.exists(path)]
    if len(missing) == len(every):
        raise UsageError(*missing, *problems)
    files = Files.of(Path(), (name for match in matches for name in _pictures(match, problems, others)))
    if not len(files):
        raise UsageError(*problems)
    return NamedPictures(files, problems, others)


def _matches(path: str, problems: list[str]) -> list[str]:
    """Expand a pattern in alphabetical order, as a shell would; a path that exists is none."""
    if os.path.lexists(path) or not PATTERN_CHARS & set(path):
        return [path]
    if not (matches := sorted(glob.glob(path, recursive=True))):
        problems.append(problem(f"pattern {path}", expected="files or folders that match it", got="none"))
    return matches


def _pictures(matches: list[str], problems: list[str], others: list[str]) -> Iterator[bytes]:
    """List what a pattern matches, each picture once: ``photos/**`` matches the folders inside one that it matches."""
    matched = {*map(Path, matches)}
    outermost = [path for path in matches if matched.isdisjoint(Path(path).parents)]
    names = (name for path in outermost for name in _names(path, problems, others))
    yield from dict.fromkeys(names)


def _names(path: str, problems: list[str], others: list[str]) -> Iterator[bytes]:
    if not os.path.isdir(path):
        yield os.fsencode(path)
        return
    try:
        files = pictures_below(Path(path))
    except UsageError as error:
        problems.append(str(error))
        return
    if kinds := files.describe_others():
        others.append(f"not taken as images in {printable(path)}: {kinds}")
    if not len(files):
        problems.append(problem(f"folder {path}", expected="images", got="none"))
    for picture in range(len(files)):
        yield os.path.join(os.fsencode(path), files.relative_path(picture))
