"""The files with networks that `fuzz.py` alters: ours, and those of others."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from alterations import (
    ODD,
    Malice,
    alter_archive,
    alter_bytes,
    alter_header,
    alter_tensor,
    alter_tree,
)
from altered import Kind, Outcome

__all__ = ["Checkpoints", "Published"]


class Checkpoints(Kind):
    """Networks that kdcache wrote: an altered one is refused, unless whoever altered it made the checksum right."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from kdcache import tensor_files
        from kdcache.models import build, checkpoint

        self.checkpoint, self.tensors = checkpoint, tensor_files
        path = folder / "original.safetensors"
        checkpoint.save(build("resnet8", num_classes=3, seed=1), path, class_names=("a", "b", "c"), epoch=1)
        self.content = path.read_bytes()
        self.state, self.facts = tensor_files.load(path, checkpoint.FORMAT)
        self.original = checkpoint.fingerprint(checkpoint.load(path)), self.facts

    def try_one(self, dice: Random) -> Outcome:
        path = self.folder / "model.safetensors"
        forged = dice.random() < 0.25
        if forged:
            state, facts = dict(self.state), alter_tree(self.facts, dice)
            if dice.random() < 0.3:
                key = dice.choice(sorted(state))
                state[key] = alter_tensor(state[key], dice)
            if not isinstance(facts, dict):
                facts = {"format": facts}
            facts.pop("sha256", None)
            self.tensors.save(path, state, facts)
        elif dice.random() < 0.5:
            path.write_bytes(alter_bytes(self.content, dice))
        else:
            path.write_bytes(alter_header(self.content, dice))
        network = self.checkpoint.load(path)
        facts = {key: value for key, value in self.checkpoint.metadata(path).items() if key != "sha256"}
        if (self.checkpoint.fingerprint(network), facts) == self.original:
            return Outcome("as the original")
        return Outcome("as another" if forged else "wrong", f"facts {facts}")


class Published(Kind):
    """Networks that others wrote. Only torch's archives have checksums; elsewhere other bytes are another network."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        from safetensors.torch import save_file

        from kdcache.models import build, checkpoint, published

        self.build, self.checkpoint, self.published = build, checkpoint, published
        self.state = {
            key: value.contiguous() for key, value in build("resnet8", num_classes=3, seed=1).body.state_dict().items()
        }
        document = {"model": self.state, "accuracy": torch.tensor(75.0), "epoch": 3}
        torch.save(document, folder / "zip.pth")
        torch.save(document, folder / "old.pth", _use_new_zipfile_serialization=False)
        save_file(self.state, folder / "other.safetensors")
        self.originals = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.fingerprint = self.read(folder / "zip.pth", recognise=True)

    def read(self, path: Path, recognise: bool) -> str:
        found = self.published.read(path)
        if recognise:  # which takes long: the file is compared with every network
            self.published.closest(found.state)
        network = self.build("resnet8", num_classes=3, seed=2)
        self.published.load_into(network, found.state, path)
        return str(self.checkpoint.fingerprint(network))

    def try_one(self, dice: Random) -> Outcome:
        name = dice.choice(sorted(self.originals))
        path = self.folder / f"altered-{name}"
        rewritten = dice.random() < 0.4
        if not rewritten:
            path.write_bytes(alter_bytes(self.originals[name], dice))
        elif name == "other.safetensors":
            path.write_bytes(alter_header(self.originals[name], dice))
        elif name == "zip.pth" and dice.random() < 0.5:
            alter_archive(self.folder / name, path, dice)
        else:
            self.save_another(path, dice, new=name == "zip.pth")
        found = self.read(path, recognise=dice.random() < 0.1)
        if found == self.fingerprint:
            return Outcome("as the original")
        if name == "zip.pth" and not rewritten:
            return Outcome("wrong", "altered bytes of an archive were read")
        return Outcome("as another")

    def save_another(self, path: Path, dice: Random, new: bool) -> None:
        """Write what torch can write and no network wants."""
        import torch

        state: dict[Any, Any] = dict(self.state)
        key = dice.choice(sorted(state))
        shape = state[key].shape
        odd: list[Callable[[], Any]] = [
            lambda: alter_tensor(state[key], dice),
            lambda: torch.zeros(shape).to_sparse(),
            lambda: torch.zeros(shape, device="meta"),
            lambda: torch.zeros(shape, dtype=torch.complex64),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
            lambda: Malice(),
            lambda: dice.choice(ODD),
        ]
        state[key] = dice.choice(odd)()
        if dice.random() < 0.2:
            state[dice.choice((7, None, ("a", "b"), 2.5, "\x1b"))] = state.pop(key)
        document = dice.choice((state, {"model": state}, {"net": state, "accuracy": state[next(iter(state))]}, [state]))
        torch.save(document, path, _use_new_zipfile_serialization=new)
