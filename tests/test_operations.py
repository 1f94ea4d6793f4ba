"""Operations of AutoAugment and its kin: compared with torchvision, and the same in any batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from kdcache.views.operations import OPERATIONS, VALUES, apply_operations
from kdcache.views.policies import (
    AUTO,
    POLICIES,
    RAND,
    SIGNED,
    WIDE,
    Magnitudes,
    make_autoaugment,
    make_randaugment,
    make_trivialaugment,
)

SPACES = {
    "AutoAugment": (AUTO, v2.AutoAugment()),
    "RandAugment": (RAND, v2.RandAugment()),
    "TrivialAugmentWide": (WIDE, v2.TrivialAugmentWide()),
}
NEAREST = InterpolationMode.NEAREST
LAST_BITS = 1e-4
"""torchvision computes magnitudes in float32; where it truncates them, ours may be larger by one."""


NO_FILL = {Tensor: None, "others": None}


def torchvision_name(operation: str) -> str:
    return operation.title().replace("-", "")


def images(side: int, count: int = 8, seed: int = 0) -> Tensor:
    """Smooth images that use the whole range, one of a single color."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).float()
    made = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").byte()
    made[-1] = torch.tensor([7, 130, 255], dtype=torch.uint8)[:, None, None]
    return made


def by_us(operation: str, level: int, magnitudes: Magnitudes, x: Tensor) -> Tensor:
    values = np.zeros((len(x), VALUES), np.int64)
    found = magnitudes.values(operation, level, *x.shape[2:])
    values[:, : len(found)] = found
    return apply_operations(x, np.full(len(x), OPERATIONS.index(operation)), values)


def magnitudes_of_torchvision(space: str, operation: str, side: int) -> Tensor | None:
    ours, theirs = SPACES[space]
    found = theirs._AUGMENTATION_SPACE[torchvision_name(operation)][0](ours.top + 1, side, side)
    return None if found is None else torch.as_tensor(found).double()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_those_of_torchvision(space: str, side: int, operation: str) -> None:
    ours, theirs = SPACES[space]
    if torchvision_name(operation) not in theirs._AUGMENTATION_SPACE:
        assert (space, operation) in {
            ("AutoAugment", "identity"), ("RandAugment", "invert"), ("TrivialAugmentWide", "invert")
        }  # fmt: skip
        return
    assert theirs._AUGMENTATION_SPACE[torchvision_name(operation)][1] == (operation in SIGNED)
    x, strengths = images(side), magnitudes_of_torchvision(space, operation, side)
    top = 0 if strengths is None else ours.top
    for level in range(-top if operation in SIGNED else 0, top + 1, 1 if top < 10 else 3):
        strength = 0.0 if strengths is None else math.copysign(float(strengths[abs(level)]), level)
        if operation.startswith("translate"):
            strength += math.copysign(LAST_BITS, strength)
        if operation == "solarize":
            strength -= LAST_BITS / 255
        geometric = operation in ("shear-x", "shear-y", "rotate")
        # A source between two pixels is rounded to either, by them and by us.
        found = [strength - LAST_BITS, strength + LAST_BITS] if geometric else [strength]
        expected = torch.stack([
            theirs._apply_image_or_video_transform(x, torchvision_name(operation), each, NEAREST, NO_FILL)
            for each in found
        ])  # fmt: skip
        off = (by_us(operation, level, ours, x).int() - expected.int()).abs().amin(0)
        if geometric:
            assert (off > 0).double().mean() < 0.003
        else:
            assert off.max() <= (operation in ("brightness", "color", "contrast", "sharpness", "auto-contrast"))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("side", [32, 64, 224])
def test_magnitudes_are_those_of_torchvision(space: str, side: int) -> None:
    ours, theirs = SPACES[space]
    for operation in OPERATIONS:
        if torchvision_name(operation) not in theirs._AUGMENTATION_SPACE:
            continue
        strengths = magnitudes_of_torchvision(space, operation, side)
        for level in range(0 if strengths is None else ours.top + 1):
            assert strengths is not None
            strength, values = float(strengths[level]), ours.values(operation, level, side, side)
            match operation:
                case "shear-x" | "shear-y":
                    assert max(values[1], values[3]) == pytest.approx(strength * 2**16, abs=0.51)
                case "translate-x" | "translate-y":
                    assert -min(values) == int(strength + LAST_BITS) << 16
                case "rotate":
                    assert math.degrees(math.atan2(values[3], values[0])) == pytest.approx(strength, abs=0.002)
                case "posterize":
                    assert values == (256 - 2 ** (8 - int(strength)),)
                case "solarize":
                    assert values == (math.ceil(strength * 255 - LAST_BITS),)
                case _:
                    assert values == (round((1 + strength) * 1000),)
                    assert values[0] / 1000 == pytest.approx(1 + strength, abs=1e-6)


def test_cosines_are_far_from_where_rounding_would_depend_on_the_machine() -> None:
    angles = {k * space.degrees / space.top for space in (AUTO, RAND, WIDE) for k in range(space.top + 1)}
    for function in (math.cos, math.sin):
        scaled = [function(math.radians(angle)) * 2**16 for angle in angles]
        assert min(abs(value % 1 - 0.5) for value in scaled) > 1e-4


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_policies_are_those_of_torchvision(policy: str) -> None:
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))._policies
    assert [
        tuple((torchvision_name(name), tenths / 10, level) for name, tenths, level in pair) for pair in POLICIES[policy]
    ] == [tuple((name, probability, level or 0) for name, probability, level in pair) for pair in theirs]


@given(seed=st.integers(0, 2**32), side=st.integers(32, 40), count=st.integers(1, 9))
@settings(max_examples=15)
def test_a_view_does_not_depend_on_its_batch(seed: int, side: int, count: int) -> None:
    x = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).byte()
    words = np.random.Philox(seed).random_raw(2 * count).reshape(-1, 2)
    for mix in (
        make_autoaugment("cifar10"),
        make_autoaugment("imagenet"),
        make_randaugment(4, 30),
        make_trivialaugment(),
    ):
        rows = mix.draw(words, side)[0]
        together = mix.apply(x, x, rows)
        channels_last = mix.apply(x.contiguous(memory_format=torch.channels_last), x, rows)
        assert together.dtype == torch.uint8
        assert channels_last.equal(together)
        assert channels_last.stride() == x.contiguous(memory_format=torch.channels_last).stride()
        for row in range(count):
            alone = slice(row, row + 1)
            assert mix.apply(x[alone], x[alone], rows[alone]).equal(together[alone])


def test_negative_levels_are_the_other_direction() -> None:
    x = images(33)
    for first, flip in (("translate-x", 3), ("shear-x", 3), ("shear-y", 2), ("rotate", 3)):
        forward, back = (by_us(first, level, WIDE, x) for level in (7, -7))
        assert not forward.equal(back)
        if first in ("translate-x", "rotate"):
            assert by_us(first, -7, WIDE, x.flip(flip)).flip(flip).equal(forward)
    assert by_us("translate-y", 5, AUTO, x)[:, :, :8].count_nonzero() == 0  # a positive level moves down
    assert by_us("brightness", 9, AUTO, x).double().mean() > by_us("brightness", -9, AUTO, x).double().mean()


def test_what_is_drawn_is_uniform() -> None:
    words = np.random.Philox(5).random_raw(2 * 60_000).reshape(-1, 2)
    for mix, steps in ((make_randaugment(3, 9), 3), (make_trivialaugment(), 1)):
        rows, lam = mix.draw(words, 32)
        assert rows.shape == (60_000, 2 * steps)
        assert (lam == 1).all()
        for step in range(steps):
            operations, levels = rows[:, 2 * step], rows[:, 2 * step + 1]
            assert abs(np.bincount(operations, minlength=15) / 60_000 - [*[1 / 14] * 14, 0]).max() < 0.006
            signed = np.isin(operations, [OPERATIONS.index(name) for name in SIGNED])
            assert abs((levels[signed] < 0).mean() - 0.5) < 0.03
            assert levels[~signed].min() == 0
        if steps == 3:
            assert set(abs(rows[:, 1])) == {0, 9}
            pairs = np.bincount(rows[:, 0] * 15 + rows[:, 4], minlength=225)
            assert pairs.max() < 60_000 / 196 * 1.3  # the third step is drawn from derived words
        else:
            assert set(rows[:, 1]) == set(range(-30, 31))


def test_autoaugment_draws_each_pair_with_its_probabilities() -> None:
    words = np.random.Philox(6).random_raw(2 * 50_000).reshape(-1, 2)
    for policy, pairs in POLICIES.items():
        rows, _ = make_autoaugment(policy).draw(words, 32)
        for step in range(2):
            expected = np.zeros(15)
            for pair in pairs:
                name, tenths, _ = pair[step]
                expected[OPERATIONS.index(name)] += tenths / 10 / 25
                expected[0] += (1 - tenths / 10) / 25
            assert abs(np.bincount(rows[:, 2 * step], minlength=15) / 50_000 - expected).max() < 0.011
    for size, policy in ((64, "cifar10"), (65, "imagenet")):
        assert np.array_equal(
            make_autoaugment("auto").draw(words, size)[0], make_autoaugment(policy).draw(words, size)[0]
        )
