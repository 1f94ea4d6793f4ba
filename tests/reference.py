"""The inputs of the reference values in ``tests/golden``; see ``tests/golden/README.md``."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).with_name("golden")
BASE = 100


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def u(i: int, n: int) -> Tensor:
    """Make sequence `i`: (n,) float64 in [-1, 1)."""
    h = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64((i + 1) * 2246822519)
    h &= np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(15)
    h = h * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(13)
    return torch.from_numpy(h / 2.0**31 - 1)


def tensor(k: int, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Make input number `k` of the losses, float64."""
    return scale * u(BASE + k, math.prod(shape)).reshape(shape)


def images() -> Tensor:
    """Make the input of the networks, (2, 3, 32, 32) float64."""
    return 2 * u(-1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Set every entry of a module's state dict from its position there."""
    for place, (key, value) in enumerate(module.state_dict().items()):
        s = u(place, value.numel()).reshape(value.shape)
        last = key.rpartition(".")[2]
        if value.ndim >= 2:
            s = s * math.sqrt(6 / value[0].numel())
        else:
            special = {"num_batches_tracked": 0 * s, "running_var": 1 + 0.5 * s.abs(), "weight": 1 + 0.1 * s}
            s = special.get(last, 0.1 * s)
        value.copy_(s)
