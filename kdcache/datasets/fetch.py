"""Downloading the datasets whose terms allow it."""

import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from kdcache.datasets.cards import CARDS
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.files import rename_durably, write_folder_atomically

__all__ = ["ARCHIVES", "BY_HAND", "Archive", "fetch"]

PIECE = 2**18

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Parameters
    ----------
    url : str
    md5 : str
        As its publisher, or torchvision, states it.
    """

    url: str
    md5: str


_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_TORONTO = "https://www.cs.toronto.edu/~kriz"

ARCHIVES = {
    "fashion-mnist": (
        Archive(f"{_ZALANDO}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Archive(f"{_ZALANDO}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        Archive(f"{_ZALANDO}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        Archive(f"{_ZALANDO}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "cifar10": (Archive(f"{_TORONTO}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    "cifar100": (Archive(f"{_TORONTO}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    "tiny-imagenet": (Archive(CARDS["tiny-imagenet"].source, "90528d7ca1a48142e341f4ef8d21d0de"),),
}
"""What is fetched of each dataset; unpacked, it is the first folder that its card names."""

BY_HAND = {
    "imagenet": "image-net.org gives the pictures to those who agree to its terms. Sign in there and get "
    "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz. Unpack the first into "
    "{root}/imagenet/train, and in there each nXXXXXXXX.tar into a folder nXXXXXXXX; the second into "
    "{root}/imagenet/val; the third into {root}/imagenet (not needed if val has a folder for each class)."
}


def fetch(name: str, root: Path, tell: Tell = lambda file, done, total: None) -> Path | None:
    """Fetch a dataset into the data root, if it is not there, and unpack it.

    Parameters
    ----------
    name : str
    root : Path
    tell : callable
        Hears how many of how many bytes of a file are there.

    Returns
    -------
    Path or None
        The folder of the dataset; ``None`` for one that ships with kdcache or is the user's own.

    Raises
    ------
    UsageError
        If its terms do not allow it; the message says what to do by hand.
    KdcacheError
        If a file cannot be fetched, or is not the one that was published. What came of it is kept, and a further call
        goes on there.
    """
    card = CARDS.get(name)
    if card is None or not card.folders:
        return None
    for there in (root / folder for folder in card.folders):
        if there.is_dir():
            return there
    if name in BY_HAND:
        raise UsageError(problem(f"{name} cannot be fetched", expected=f"by hand: {BY_HAND[name].format(root=root)}"))
    folder = root / card.folders[0]
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    files = [_download(archive, downloads, tell) for archive in ARCHIVES[name]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_folder_atomically(folder, lambda temporary: _unpack(files, folder.name, temporary))
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise KdcacheError(problem(f"cannot unpack {name} into {folder}", got=first_line(error))) from error
    for file in files:
        file.unlink()
    return folder


def _download(archive: Archive, folder: Path, tell: Tell) -> Path:
    """Fetch a file, going on where an earlier try ended; it gets its name when its hash is right."""
    path = folder / archive.url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        _append(archive.url, part, lambda done, total: tell(path.name, done, total))
    except (OSError, HTTPException, ValueError) as error:
        raise KdcacheError(problem(f"cannot fetch {archive.url} into {folder}", got=first_line(error))) from error
    found = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    if found.hexdigest() != archive.md5:
        part.unlink()
        raise KdcacheError(problem(f"MD5 of {archive.url}", expected=archive.md5, got=found.hexdigest()))
    rename_durably(part, path)
    return path


def _append(url: str, part: Path, tell: Callable[[int, int], None]) -> None:
    """Fetch what is missing of a file."""
    there = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if there and error.code == 416:  # nothing is missing
            return
        raise
    with answer:
        if answer.status != 206:  # this server begins anew
            there = 0
        total = there + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if there else "wb") as file:
            while piece := answer.read(PIECE):
                file.write(piece)
                there += len(piece)
                tell(there, total)
    if total > there:
        raise ValueError(f"the connection ended after {there} of {total} bytes; try again to go on there")


def _unpack(files: list[Path], name: str, target: Path) -> None:
    """Unpack archives so that `target` is what they call `name`."""
    beside = target.with_name(f"{target.name}.all")
    try:
        beside.mkdir()
        for file in files:
            if file.name.endswith(".tar.gz"):
                with tarfile.open(file) as tar:
                    tar.extractall(beside, filter="data")
            elif file.suffix == ".zip":
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(beside)
            else:
                (beside / name).mkdir(exist_ok=True)
                with gzip.open(file) as packed, (beside / name / file.stem).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
        os.replace(beside / name, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
