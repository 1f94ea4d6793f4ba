"""Means of whole maps on a processor: torch's numbers, and gradients that lie as the maps do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdcache.models import build
from tests.layers import hastened


def maps(*shape: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return made.contiguous(memory_format=torch.channels_last)


def means_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Give what a module makes of maps, and the gradient of the maps as it comes out."""
    gradients: list[Tensor] = []
    inner = x.clone().requires_grad_() * 1
    inner.register_hook(gradients.append)
    out: Tensor = module(inner)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    return out, gradients[0]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from([1, (1, 1)]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
)
def test_the_same_numbers(
    precision: torch.dtype, size: int | tuple[int, int], shape: tuple[int, int, int, int]
) -> None:
    x = maps(*shape).to(precision)
    found, wanted = (
        means_and_gradient(module, x) for module in (hastened(nn.AdaptiveAvgPool2d(size)), nn.AdaptiveAvgPool2d(size))
    )
    assert found[0].equal(wanted[0])
    assert found[1].equal(wanted[1])
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_lies_as_the_maps_do(layout: torch.memory_format) -> None:
    x = maps(4, 6, 8, 8).contiguous(memory_format=layout)
    assert means_and_gradient(hastened(nn.AdaptiveAvgPool2d(1)), x)[1].is_contiguous(memory_format=layout)


def test_what_is_evaluated_is_torchs() -> None:
    gradient = means_and_gradient(hastened(nn.AdaptiveAvgPool2d(1)).eval(), maps(4, 6, 8, 8))[1]
    assert not gradient.is_contiguous(memory_format=torch.channels_last)


def test_others_stay_as_they_are() -> None:
    for shape in ((4, 6, 8, 8), (6, 8, 8)):
        assert hastened(nn.AdaptiveAvgPool2d(2))(torch.ones(shape)).shape[-2:] == (2, 2)
    assert hastened(nn.AdaptiveAvgPool2d(1))(torch.ones(6, 8, 8)).shape == (6, 1, 1)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "torchvision:mobilenet_v3_small"]
)
def test_networks_that_are_built_have_it(name: str) -> None:
    network = build(name, num_classes=10, seed=0)
    lies: list[bool] = []

    def look(pool: nn.Module, given: tuple[Tensor], _: object) -> None:
        given[0].register_hook(lambda gradient: lies.append(gradient.is_contiguous(memory_format=torch.channels_last)))

    for module in network.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            module.register_forward_hook(look)
    network(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    assert lies
    assert all(lies)
