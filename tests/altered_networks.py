"""Files of networks that `tests.fuzz` alters: kdcache's checkpoints, and published ones."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from kdcache import tensor_files
from kdcache.models import build, checkpoint, published, weights
from tests.alterations import (
    UNEXPECTED,
    MaliciousPickle,
    alter_archive,
    alter_bytes,
    alter_document,
    alter_safetensors_header,
    alter_tensor,
)
from tests.altered_files import FileKind, Verdict


class Checkpoints(FileKind):
    """kdcache's checkpoints. An altered one is rejected, unless its checksum was forged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = folder / "original.safetensors"
        checkpoint.save(build("resnet8", num_classes=3, seed=1), path, class_names=("a", "b", "c"), epoch=1)
        self.content = path.read_bytes()
        self.state, self.metadata = tensor_files.load(path, checkpoint.FORMAT)
        self.original = checkpoint.fingerprint(checkpoint.load(path)), self.metadata

    def try_altered(self, rng: Random) -> Verdict:
        path = self.folder / "model.safetensors"
        forged = rng.random() < 0.25
        if forged:
            state, metadata = dict(self.state), alter_document(self.metadata, rng)
            if rng.random() < 0.3:
                key = rng.choice(sorted(state))
                state[key] = alter_tensor(state[key], rng)
            if not isinstance(metadata, dict):
                metadata = {"format": metadata}
            metadata.pop("sha256", None)
            tensor_files.save(path, state, metadata)
        elif rng.random() < 0.5:
            path.write_bytes(alter_bytes(self.content, rng))
        else:
            path.write_bytes(alter_safetensors_header(self.content, rng))
        network = checkpoint.load(path)
        metadata = {key: value for key, value in checkpoint.metadata(path).items() if key != "sha256"}
        if (checkpoint.fingerprint(network), metadata) == self.original:
            return Verdict("unchanged")
        return Verdict("different" if forged else "wrong", f"metadata {metadata}")


class PublishedCheckpoints(FileKind):
    """Checkpoints of other projects. Only torch's archives have checksums; elsewhere other bytes are other weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        network = build("resnet8", num_classes=3, seed=1)
        self.state = {key: value.contiguous() for key, value in network.body.state_dict().items()}
        document = {"model": self.state, "accuracy": torch.tensor(75.0), "epoch": 3}
        torch.save(document, folder / "zip.pth")
        torch.save(document, folder / "old.pth", _use_new_zipfile_serialization=False)
        save_file(self.state, folder / "other.safetensors")
        self.originals = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.original = self.read(folder / "zip.pth", recognize=True)

    def read(self, path: Path, recognize: bool) -> str:
        """Read a file into a network, and return the network's fingerprint."""
        found = published.read(path)
        if recognize:  # slow: compares the file with every architecture
            weights.most_similar_network(found.entries)
        network = build("resnet8", num_classes=3, seed=2)
        weights.load_into(network, found.entries, path)
        return checkpoint.fingerprint(network)

    def try_altered(self, rng: Random) -> Verdict:
        name = rng.choice(sorted(self.originals))
        path = self.folder / f"altered-{name}"
        rewritten = rng.random() < 0.4
        if not rewritten:
            path.write_bytes(alter_bytes(self.originals[name], rng))
        elif name == "other.safetensors":
            path.write_bytes(alter_safetensors_header(self.originals[name], rng))
        elif name == "zip.pth" and rng.random() < 0.5:
            alter_archive(self.folder / name, path, rng)
        else:
            self.save_unusual(path, rng, zipped=name == "zip.pth")
        found = self.read(path, recognize=rng.random() < 0.1)
        if found == self.original:
            return Verdict("unchanged")
        if name == "zip.pth" and not rewritten:
            return Verdict("wrong", "an archive with altered bytes was read")
        return Verdict("different")

    def save_unusual(self, path: Path, rng: Random, zipped: bool) -> None:
        """Save a state dict with an entry that torch can save but no network has."""
        state: dict[Any, Any] = dict(self.state)
        key = rng.choice(sorted(state))
        shape = state[key].shape
        values: list[Callable[[], Any]] = [
            lambda: alter_tensor(state[key], rng),
            lambda: torch.zeros(shape).to_sparse(),
            lambda: torch.zeros(shape, device="meta"),
            lambda: torch.zeros(shape, dtype=torch.complex64),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
            lambda: MaliciousPickle("ran"),
            lambda: rng.choice(UNEXPECTED),
        ]
        state[key] = rng.choice(values)()
        if rng.random() < 0.2:
            state[rng.choice((7, None, ("a", "b"), 2.5, "\x1b"))] = state.pop(key)
        document = rng.choice((state, {"model": state}, {"net": state, "accuracy": state[next(iter(state))]}, [state]))
        torch.save(document, path, _use_new_zipfile_serialization=zipped)
