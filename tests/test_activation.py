"""ReLU of bfloat16 on a processor: torch's numbers, whatever the bits."""

import pytest
import torch
from torch import Tensor, nn

from kdcache.models import build
from tests.layers import hastened

EVERY = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
"""All numbers of bfloat16, and all that are none."""


def activated_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out: Tensor = module(x * 1)  # a leaf cannot be changed in place
    out.backward(torch.arange(1, out.numel() + 1).view(out.shape).to(out.dtype))
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("inplace", [False, True])
def test_all_numbers(inplace: bool) -> None:
    for x in (EVERY, EVERY.view(16, 16, 16, 16).to(memory_format=torch.channels_last), EVERY.view(256, 256).T):
        found, wanted = (activated_and_gradient(module, x) for module in (hastened(nn.ReLU(inplace)), nn.ReLU(inplace)))
        for mine, its in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)
            assert mine.stride() == its.stride()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("trained", [False, True])
def test_in_place_or_not(precision: torch.dtype, trained: bool) -> None:
    for inplace in (False, True):
        x = torch.tensor([-1.0, 2.0], dtype=precision, requires_grad=trained) * 1
        out = hastened(nn.ReLU(inplace))(x)
        assert out.tolist() == [0, 2]
        assert x.tolist() == ([0, 2] if inplace else [-1, 2])
        assert (out is x) == inplace


def test_what_was_changed_in_place_is_not_taken_for_what_it_was() -> None:
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    squared = x.square()
    cubed = squared * squared
    hastened(nn.ReLU(inplace=True))(squared)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cubed.sum().backward()


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2", "torchvision:resnet18"]
)
def test_networks_that_are_built_have_it(name: str) -> None:
    network = build(name, num_classes=10, seed=0)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.profiler.profile() as profile:
        network(images)
    called = {event.key for event in profile.key_averages()}
    assert "_Activated" in called
    assert not any("relu" in key or "clamp" in key for key in called)
