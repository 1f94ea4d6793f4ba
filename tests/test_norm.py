"""Batch norms trained on a processor: what exact arithmetic gives, whatever the number of channels."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdcache.loop import UnchangedStatistics
from kdcache.models import build
from tests.layers import hastened

PRECISIONS = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
"""How far maps and their gradients may be off, in the mean square by that of the values."""


def norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm none of whose figures is a special one."""
    generator = torch.Generator().manual_seed(0)
    made = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    state = {name: torch.rand(channels, generator=generator) + 0.5 for name in made.state_dict() if name[0] in "wbr"}
    made.load_state_dict({**state, "num_batches_tracked": torch.tensor(4)})
    return made


def maps(*shape: int) -> Tensor:
    """Maps whose channels have means that are large beside their deviations."""
    generator = torch.Generator().manual_seed(1)
    means = 8 * torch.rand(shape[1], 1, 1, generator=generator)
    return (torch.randn(shape, generator=generator) + means).contiguous(memory_format=torch.channels_last)


def of_ours(out: Tensor) -> bool:
    return out.grad_fn is not None and "Normalised" in out.grad_fn.name()


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp(min=1e-9))


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(deadline=None, max_examples=60)
@given(
    channels=st.sampled_from([1, 3, 12, 16, 24, 32, 54, 58, 72, 116, 216]),
    images=st.integers(2, 9),
    side=st.sampled_from([2, 4, 6, 8]),
)
def test_the_same_as_in_exact_arithmetic(precision: torch.dtype, channels: int, images: int, side: int) -> None:
    module, exact = hastened(norm(channels)), norm(channels).double()
    x = maps(images, channels, side, side).to(precision)
    exact_x = x.double().requires_grad_()
    x.requires_grad_()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(precision)
    gradient = gradient.contiguous(memory_format=torch.channels_last)

    out, exact_out = module(x), exact(exact_x)
    out.backward(gradient)
    exact_out.backward(gradient.double())
    assert x.grad is not None
    assert exact_x.grad is not None
    assert out.dtype == x.grad.dtype == precision
    assert off(out, exact_out) < PRECISIONS[precision]
    assert off(x.grad, exact_x.grad) < 2 * PRECISIONS[precision]
    for (name, found), wanted in zip(module.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert (found.grad - wanted.grad).norm() < 1e-5 * gradient.float().norm(), name
    for (name, figure), wanted in zip(module.named_buffers(), exact.buffers(), strict=True):
        assert off(figure, wanted.double()) < 1e-5, name


@pytest.mark.parametrize("channels", [16, 24])
def test_running_statistics_stay_where_they_are_to(channels: int) -> None:
    module = hastened(norm(channels))
    before = copy.deepcopy(module.state_dict())
    with UnchangedStatistics(module):
        unmoved = module(maps(4, channels, 8, 8))
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert module(maps(4, channels, 8, 8)).equal(unmoved)
    assert not module.running_mean.equal(before["running_mean"])  # type: ignore[union-attr]
    assert module.num_batches_tracked == 5


@pytest.mark.parametrize("channels", [16, 24])
def test_copies_keep_to_themselves(channels: int) -> None:
    module = hastened(norm(channels))
    before = copy.deepcopy(module.state_dict())
    copy.deepcopy(module)(maps(4, channels, 8, 8))
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


def test_where_it_gains() -> None:
    for channels in (16, 24):
        module = hastened(norm(channels))
        assert of_ours(module(maps(4, channels, 8, 8)))
        assert not of_ours(module(maps(4, channels, 8, 8).contiguous()))
        assert not of_ours(module(maps(3, channels, 1, 1)))  # pixels left over
        assert not of_ours(module.eval()(maps(4, channels, 8, 8)))
    for channels in (32, 48, 64):
        assert not of_ours(hastened(norm(channels))(maps(4, channels, 8, 8)))


def test_others_stay_as_they_are() -> None:
    for other in (
        nn.BatchNorm2d(24, affine=False),
        nn.BatchNorm2d(24, momentum=None),
        nn.BatchNorm2d(24, track_running_stats=False),
    ):
        assert not of_ours(hastened(other)(maps(4, 24, 8, 8).requires_grad_()))


@pytest.mark.parametrize("name", ["resnet8", "ShuffleV2"])
def test_networks_that_are_built_have_it(name: str) -> None:
    network = build(name, num_classes=10, seed=0)
    found = {module.num_features: None for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, _, out: found.update({module.num_features: of_ours(out)}))
    network(torch.zeros(32, 3, 32, 32, dtype=torch.uint8))
    assert found == {channels: channels == 16 or channels % 16 > 0 for channels in found}
