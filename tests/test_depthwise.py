"""Depthwise convolutions trained on a processor: torch's outputs, and the gradients of exact arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdcache.models import build
from tests.layers import hastened

PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""How far a gradient may be off by its largest value."""


def convolution(**shape: object) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(**shape)  # type: ignore[arg-type]
    # What bfloat16 holds, so that all precisions convolve the same numbers.
    made.load_state_dict({name: value.bfloat16().float() for name, value in made.state_dict().items()})
    return made.to(memory_format=torch.channels_last)


def numbers(*shape: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    return made.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(deadline=None, max_examples=60)
@given(
    kernel=st.tuples(*[st.sampled_from([1, 2, 3, 5, 7])] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    padded=st.booleans(),
    dilation=st.integers(1, 2),
    size=st.tuples(*[st.integers(2, 9)] * 2),
    multiplier=st.integers(1, 2),
    bias=st.booleans(),
)
def test_gradients(
    precision: torch.dtype,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padded: bool,
    dilation: int,
    size: tuple[int, int],
    multiplier: int,
    bias: bool,
) -> None:
    reach = [dilation * (taps - 1) for taps in kernel]
    padding = tuple(each // 2 for each in reach) if padded else (0, 0)
    if any(pixels + 2 * edge <= far for pixels, edge, far in zip(size, padding, reach, strict=True)):
        return
    shape = {"in_channels": 6, "out_channels": 6 * multiplier, "groups": 6, "bias": bias}
    shape |= {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    module, exact = hastened(convolution(**shape)), convolution(**shape).double()
    x, exact_x = numbers(4, 6, *size).requires_grad_(), numbers(4, 6, *size).double().requires_grad_()

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = module(x)
    assert out.dtype == precision
    gradient = numbers(*out.shape)
    out.backward(gradient.to(precision))
    exact(exact_x).backward(gradient.double())
    for found, wanted in zip((x, *module.parameters()), (exact_x, *exact.parameters()), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert found.grad.dtype == torch.float32
        assert (found.grad - wanted.grad).abs().max() <= PRECISIONS[precision] * wanted.grad.abs().max() + 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (5, 1, 8), (3, 1, 2)])
def test_outputs_are_those_of_torch(precision: torch.dtype, kernel: int, stride: int, size: int) -> None:
    shape = {"in_channels": 6, "out_channels": 6, "groups": 6, "kernel_size": kernel}
    shape |= {"stride": stride, "padding": kernel // 2}
    module, plain, x = hastened(convolution(**shape)), convolution(**shape), numbers(4, 6, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        assert module(x).equal(plain(x))


def of_ours(out: Tensor) -> bool:
    return out.grad_fn is not None and "Depthwise" in out.grad_fn.name()


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "expected"),
    [
        (3, 1, 8, ()),
        (3, 2, 8, (torch.bfloat16,)),
        (5, 1, 8, (torch.float32, torch.bfloat16)),
        (3, 1, 2, (torch.float32, torch.bfloat16)),
    ],
)
def test_what_is_slow_goes_another_way(kernel: int, stride: int, size: int, expected: tuple[torch.dtype, ...]) -> None:
    shape = {"in_channels": 6, "out_channels": 6, "groups": 6, "kernel_size": kernel}
    module = hastened(convolution(stride=stride, padding=kernel // 2, **shape))
    x = numbers(4, 6, size, size)
    for precision in PRECISIONS:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            assert of_ours(module(x)) == (precision in expected)
            with torch.no_grad():
                assert module(x).grad_fn is None
            assert not of_ours(module.eval()(x))
            module.train()


class Shifted(nn.Conv2d):
    """A convolution with a forward of its own, as timm has some."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_other_convolutions_stay_as_they_are() -> None:
    grouped = nn.Conv2d(6, 6, 5, 2, padding=2, groups=3)
    reflecting = nn.Conv2d(6, 6, 5, 2, padding=2, groups=6, padding_mode="reflect")
    named = nn.Conv2d(6, 6, 5, padding="same", groups=6)
    own = Shifted(6, 6, 5, 2, padding=2, groups=6)
    for module in (grouped, reflecting, named, own):
        assert not of_ours(hastened(module)(numbers(4, 6, 8, 8)))


@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_networks_that_are_built_have_it(name: str) -> None:
    network = build(name, num_classes=10, seed=0)
    used = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
            module.register_forward_hook(lambda module, _, out: used.append((module.stride, of_ours(out))))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert {strided for strided, ours in used if not ours} == {(1, 1)}
    assert (2, 2) in {strided for strided, ours in used if ours}
