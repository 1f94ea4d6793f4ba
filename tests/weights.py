"""Weights of a small network, and files of them."""

from pathlib import Path

import torch

from kdcache.models import build

State = dict[str, torch.Tensor]
HALF = (0.5, 0.5, 0.5)


def state(name: str = "resnet8", classes: int = 3, seed: int = 4) -> State:
    return dict(build(name, num_classes=classes, seed=seed).body.state_dict())


def prefixed(prefix: str, tensors: State) -> State:
    return {prefix + key: value for key, value in tensors.items()}


def saved(path: Path, document: object) -> Path:
    torch.save(document, path)
    return path
