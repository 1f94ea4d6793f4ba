"""Downloading datasets from a server on this machine."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdcache.cards import CARDS
from kdcache.datasets import fetch, load
from kdcache.datasets.fetch import ARCHIVES, BY_HAND, Archive
from kdcache.errors import KdcacheError, UsageError
from tests.samples import names_below, noise, refusal, write_tiny


class Server(ThreadingHTTPServer):
    """Serves files, completely or from an offset, and may break the connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.breaks_after: int | None = None
        self.resumes = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.requests.append((name, wanted))
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.resumes else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.breaks_after])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.02,))
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def publish(server: Server, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the files of a dataset."""
    server.files |= files
    archives = tuple(
        Archive(f"http://127.0.0.1:{server.server_port}/{file}", hashlib.md5(content).hexdigest())
        for file, content in files.items()
    )
    monkeypatch.setitem(ARCHIVES, name, archives)


def fashion() -> dict[str, bytes]:
    files = {}
    for name, count in (("train", 10), ("t10k", 3)):
        images = struct.pack(">4i", 2051, count, 28, 28) + noise(count, 28, 28).tobytes()
        files[f"{name}-images-idx3-ubyte.gz"] = gzip.compress(images)
        files[f"{name}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">2i", 2049, count) + bytes(range(count)))
    return files


def tiny(folder: Path) -> bytes:
    write_tiny(folder)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(names_below(folder)):
            archive.write(folder / path, path)
    return file.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_a_downloaded_dataset_can_be_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, "fashion-mnist", fashion(), monkeypatch)
    publish(server, "tiny-imagenet", {"tiny.zip": tiny(tmp_path / "made")}, monkeypatch)
    root = tmp_path / "root"
    data = load("fashion-mnist", root=root, download=True)
    assert (len(data.train), data.test.labels.tolist()) == (10, [0, 1, 2])
    assert len(load("tiny-imagenet", root=root, download=True).train) == 200
    before = len(server.requests)
    load("fashion-mnist", root=root, download=True)
    assert len(server.requests) == before  # it is present already
    assert names_below(root / "downloads") == set()


def test_a_tar_is_unpacked_within_its_folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"cifar.tar.gz": tar({"cifar-100-python/train": b"1", "cifar-100-python/meta": b"2"})}
    publish(server, "cifar100", files, monkeypatch)
    folder = fetch.fetch("cifar100", tmp_path)
    assert folder == tmp_path / "cifar-100-python"
    assert names_below(tmp_path) == {"cifar-100-python/train", "cifar-100-python/meta"}
    publish(server, "cifar10", {"evil.tar.gz": tar({"../evil": b"1"})}, monkeypatch)
    message = refusal(lambda: fetch.fetch("cifar10", tmp_path / "deep"), KdcacheError)
    assert "could not unpack cifar10" in message
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "deep/cifar-10-batches-py").exists()


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_download_is_resumed(
    resumes: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, content), *_ = fashion().items()
    publish(server, "fashion-mnist", fashion(), monkeypatch)
    server.breaks_after, server.resumes = 3000, resumes
    message = refusal(lambda: fetch.fetch("fashion-mnist", tmp_path), KdcacheError)
    assert name in message
    assert "3000" in message
    assert names_below(tmp_path) == {f"downloads/{name}.part"}
    server.breaks_after = None
    calls: list[tuple[str, int, int]] = []
    fetch.fetch("fashion-mnist", tmp_path, lambda *words: calls.append(words))
    assert server.requests[1] == (name, "bytes=3000-")
    assert calls[0] == (name, len(content), len(content))
    assert len(names_below(tmp_path)) == 4


def test_a_complete_partial_download_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, "fashion-mnist", fashion(), monkeypatch)
    (name, content), *_ = fashion().items()
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / f"{name}.part").write_bytes(content)
    assert fetch.fetch("fashion-mnist", tmp_path) == tmp_path / "FashionMNIST/raw"


def test_a_file_with_a_wrong_hash_is_refused_and_deleted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, "fashion-mnist", fashion(), monkeypatch)
    name = next(iter(server.files))
    server.files[name] = server.files[name][:-1] + b"x"
    message = refusal(lambda: fetch.fetch("fashion-mnist", tmp_path), KdcacheError)
    assert "MD5" in message
    assert ARCHIVES["fashion-mnist"][0].md5 in message
    assert names_below(tmp_path) == set()


def test_a_missing_file_or_server_gives_one_message(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, "cifar100", {"x.tar.gz": b""}, monkeypatch)
    del server.files["x.tar.gz"]
    assert "404" in refusal(lambda: load("cifar100", root=tmp_path, download=True), KdcacheError)
    monkeypatch.setitem(ARCHIVES, "cifar100", (Archive("http://127.0.0.1:1/x.tar.gz", ""),))
    assert "could not download http://127.0.0.1:1" in refusal(lambda: fetch.fetch("cifar100", tmp_path), KdcacheError)


def test_every_dataset_can_be_downloaded_or_its_source_is_explained(tmp_path: Path) -> None:
    assert {*ARCHIVES, *BY_HAND, "fashion-mini"} == set(CARDS)
    message = refusal(lambda: fetch.fetch("imagenet", tmp_path), UsageError)
    for word in ("ILSVRC2012_img_train.tar", "ILSVRC2012_devkit_t12.tar.gz", f"{tmp_path}/imagenet/val"):
        assert word in message
    (tmp_path / "imagenet").mkdir()
    assert fetch.fetch("imagenet", tmp_path) == tmp_path / "imagenet"
    assert fetch.fetch("fashion-mini", tmp_path) is None
