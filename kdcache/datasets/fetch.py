"""Downloading the datasets whose license allows it."""

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

from kdcache.cards import CARDS, canonical
from kdcache.choices import HF_PREFIX, TORCHVISION_PREFIX
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.files import rename_durably, write_folder_atomically

__all__ = ["ARCHIVES", "BY_HAND", "Archive", "fetch"]

BLOCK_BYTES = 2**18

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Parameters
    ----------
    url : str
    md5 : str
        As stated by its publisher, or by torchvision.
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
"""The files of each dataset. Unpacked, they become the first folder that its card names."""

BY_HAND = {
    "imagenet": "Sign in at image-net.org, agree to its terms, and download ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz. Unpack the first into {root}/imagenet/train, and there "
    "each nXXXXXXXX.tar into a folder nXXXXXXXX; the second into {root}/imagenet/val; the third into {root}/imagenet "
    "(not needed if val has a folder for each class)."
}
"""How to get the datasets that cannot be downloaded."""


def fetch(name: str, root: Path, progress: ProgressCallback = lambda file, done, total: None) -> Path | None:
    """Download a dataset into the data root and unpack it, unless it is there already.

    Parameters
    ----------
    name : str
    root : Path
    progress : callable
        Called with the name of a file, the number of its bytes downloaded, and their total.

    Returns
    -------
    Path or None
        The folder of the dataset; ``None`` for the one that ships with kdcache, and for the user's own.

    Raises
    ------
    UsageError
        If its license does not allow it. The message says how to get it.
    KdcacheError
        If a download fails, or its hash is wrong. A partial download is kept, and a later call resumes it.
    """
    if name.startswith(HF_PREFIX):
        from kdcache.datasets import hugging_face

        return hugging_face.fetch(canonical(name), root)
    if name.startswith(TORCHVISION_PREFIX) and canonical(name) == name:
        from kdcache.datasets import torchvision_sets

        return torchvision_sets.fetch(name, root)
    card = CARDS.get(name := canonical(name))
    if card is None or not card.folders:
        return None
    for existing in (root / folder for folder in card.folders):
        if existing.is_dir():
            return existing
    if name in BY_HAND:
        raise UsageError(problem(f"{name} cannot be downloaded by kdcache", remedy=BY_HAND[name].format(root=root)))
    folder = root / card.folders[0]
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    files = [_download(archive, downloads, progress) for archive in ARCHIVES[name]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_folder_atomically(folder, lambda temporary: _unpack(files, folder.name, temporary))
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        remedy = f"Delete {downloads} and try again."
        raise KdcacheError(
            problem(f"could not unpack {name} into {folder}", got=first_line(error), remedy=remedy)
        ) from error
    for file in files:
        file.unlink()
    return folder


def _download(archive: Archive, folder: Path, progress: ProgressCallback) -> Path:
    """Download a file, resuming an earlier attempt. It gets its name when its hash is verified."""
    path = folder / archive.url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        _append(archive.url, part, lambda done, total: progress(path.name, done, total))
    except (OSError, HTTPException, ValueError) as error:
        what = f"could not download {archive.url} into {folder}"
        raise KdcacheError(problem(what, got=first_line(error))) from error
    md5 = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            md5.update(block)
    if md5.hexdigest() != archive.md5:
        part.unlink()
        raise KdcacheError(problem(f"MD5 of {archive.url}", expected=archive.md5, got=md5.hexdigest()))
    rename_durably(part, path)
    return path


def _append(url: str, part: Path, progress: Callable[[int, int], None]) -> None:
    """Download the missing bytes of a file."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # the file is complete
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            done = 0
        total = done + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if done else "wb") as file:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                progress(done, total)
    if total > done:
        raise ValueError(f"the connection ended after {done} of {total} bytes; run the command again to resume")


def _unpack(files: list[Path], name: str, target: Path) -> None:
    """Unpack archives; `target` becomes the folder that they call `name`."""
    unpacked = target.with_name(f"{target.name}.all")
    try:
        unpacked.mkdir()
        for file in files:
            if file.name.endswith(".tar.gz"):
                with tarfile.open(file) as tar:
                    tar.extractall(unpacked, filter="data")
            elif file.suffix == ".zip":
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(unpacked)
            else:
                (unpacked / name).mkdir(exist_ok=True)
                with gzip.open(file) as packed, (unpacked / name / file.stem).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
        os.replace(unpacked / name, target)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
