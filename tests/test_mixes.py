"""What mixes draw and make, bit for bit, and that nothing else is read or changed."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from kdcache.choices import MIXES, MixInfo
from kdcache.config.augs import BETA_SHAPES
from kdcache.datasets import Split
from kdcache.errors import KdcacheError
from kdcache.views import ViewPlan, Views
from kdcache.views.beta import beta_lambdas
from kdcache.views.mixes import Mix, _made, find_mix
from tests.fake_cuda import FakeCuda
from tests.test_augs import changed_alone, plan
from tests.test_views import digest

CPU = torch.device("cpu")

# Made once by this code, for 500 samples, slot 1, epoch 3 of view seed 4; the same on every machine.
GOLDEN = {
    "mixup": ("7c8bcc286190d662", None),
    "mixup,alpha=0.2": ("1c1494f19a4a3bf2", None),
    "mixup,probability=0.5": ("7c7f67c8656e9bc1", None),
    "mixup,mode=batch64": ("26ca2dc6a27f7ead", None),
    "cutmix": ("e6b9db03f77ab5eb", "1e409aeecb653675"),
    "cutmix,alpha=0.2": ("acbf2d05749cd7da", "e905304dc36afde3"),
    "cutmix,alpha=4": ("61690c6f066862c5", "f33aa8944ff141b8"),
    "cutmix,probability=0.5": ("9ff3a29f566cb51f", "9cb830861488ffb6"),
    "cutmix,mode=batch64": ("f18780cb678c70f0", "637bfc3e2ca708f3"),
    "cutmix,probability=0.5,mode=batch50": ("5b059b02e89d437b", "79fbf39cacf43013"),
    "cutout": ("6b821a6e858e3ee1", "6a7d8f25d8888452"),
    "cutout,side=0.25": ("ed283f857063d37f", "9966c79ad57312d2"),
    "cutout,fill=7d7b70": ("6b821a6e858e3ee1", "7d76cf5b4ff082e3"),
    "erasing": ("9d1022c906f5226f", "654263ea7e397751"),
    "erasing,probability=1": ("6b680f12434072d6", "f6dead8210f7c5ed"),
    "autoaugment": ("e78d11616822870d", "acb2908c982110bb"),
    "autoaugment,policy=imagenet": ("4c32ce3b00717342", "64f2ef8a6d529e07"),
    "randaugment": ("13c0e12b98d23bcf", "499b4a5746b93616"),
    "randaugment,number=5": ("8694fc2dc1697494", "1f80be6fbf4aad3d"),
    "randaugment,magnitude=15": ("ed6e6ab9c8fca66d", "4950e0e8cb8095d1"),
    "trivialaugment": ("2b875c2b072f0665", "0369381a612874ec"),
}
"""Hash of the table, and of the views of the first 200 positions of random pixels that are smoothed over 2x2.

Float views are not the same on every machine: a blend may be one fused operation or two.
"""


def smooth_pixels() -> Tensor:
    words = np.random.Philox(7).random_raw(500 * 3 * 32 * 32) >> np.uint64(56)
    whole = torch.from_numpy(words.astype(np.int64)).view(500, 3, 32, 32)
    return ((whole + whole.roll(1, 2) + whole.roll(1, 3) + whole.roll((1, 1), (2, 3))) // 4).byte()


@pytest.mark.parametrize("mix", GOLDEN)
def test_rows_and_views_are_the_same_on_every_machine(mix: str) -> None:
    drawn = plan(mix, samples=500, seed=4)
    views = Views(Split(smooth_pixels(), torch.zeros(500, dtype=torch.int64)), drawn, 64, CPU).views(3, 1, range(200))
    hashed = (
        None if views.is_floating_point() else hashlib.sha256(views.contiguous().numpy().tobytes()).hexdigest()[:16]
    )
    assert (digest(drawn.epoch(3)), hashed) == GOLDEN[mix]


@pytest.mark.parametrize("mix", [*MIXES, *changed_alone()])
def test_views_read_and_change_no_random_state_and_no_value_of_the_device(
    mix: str, noise: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(seed: int) -> Tensor:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before, state = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
        made = Views(noise, plan(mix), 64, CPU).views(2, 1, range(40))
        assert torch.get_rng_state().equal(before)
        assert np.random.get_state()[1].tobytes() == state  # noqa: NPY002
        return made

    made = views(1)
    assert made.equal(views(2))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert made.equal(views(3))
    finally:
        torch.set_num_threads(threads)
    rows = plan(mix).epoch(2).slots[0].parameters[:40]
    # Where there are no values, reading one, for which a GPU would make the host wait, is an error.
    for device, mode in (("meta", nullcontext()), ("cuda:0", FakeCuda(monkeypatch))):
        with mode:
            first, second = (torch.empty(40, 3, 32, 32, dtype=torch.uint8, device=device) for _ in range(2))
            empty = find_mix(mix).apply(first, second, rows)
        assert (empty.shape, empty.dtype, empty.device) == (made.shape, made.dtype, first.device)


@pytest.mark.parametrize("alpha", BETA_SHAPES)
def test_lambda_follows_the_beta_distribution(alpha: float) -> None:
    for bits in (24, 32):
        uniform = np.random.Philox(1).random_raw(20_000) >> np.uint64(64 - bits)
        lam = beta_lambdas(uniform, bits, alpha)
        assert ((lam >= 0) & (lam <= 1)).all()
        assert np.array_equal(lam, lam.astype(np.float32) if alpha != 1 or bits == 24 else lam)
        for limit in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
            expected = stats.beta.cdf(limit, alpha, alpha)
            assert (lam < limit).mean() == pytest.approx(expected, abs=0.012)  # over 3 standard deviations
    probability = np.arange(0, 2**24, 9973, dtype=np.uint64)
    lam = beta_lambdas(probability, 24, alpha)
    assert (np.diff(lam) >= 0).all()
    exact = stats.beta.ppf(probability / 2**24, alpha, alpha)
    within = (probability > 2**24 / 256) & (probability < 2**24 * 255 / 256)
    assert abs(lam - exact)[within].max() < 0.001
    assert abs(lam - exact).max() < 0.04


def test_cutmix_and_mixup_draw_lambda_from_the_shape_in_their_name() -> None:
    for alpha in (0.2, 4.0):
        slots = plan(f"mixup,alpha={alpha:g}", f"cutmix,alpha={alpha:g}", samples=20_000).epoch(0).slots
        spread = stats.beta(alpha, alpha).std()
        assert slots[0].lam.std() == pytest.approx(spread, abs=0.01)
        assert np.array_equal(slots[0].lam, slots[0].parameters[:, 0])
        assert ((slots[1].lam > 0.95).mean() > 0.25) == (alpha < 1)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_samples_that_are_not_mixed_are_x(name: str, noise: Split) -> None:
    whole, part = (plan(mix, samples=150) for mix in (name, f"{name},probability=0.25"))
    maker = Views(noise, part, 50, CPU)
    x, views = (maker.views(1, slot, range(150)).float() for slot in (0, 1))
    mixed = Views(noise, whole, 50, CPU).views(1, 1, range(150)).float()
    slot, full = part.epoch(1).slots[0], whole.epoch(1).slots[0]
    alone = slot.partner == np.arange(150)
    assert 0.6 < alone.mean() < 0.9
    assert (slot.lam[alone] == 1).all()
    for field in ("partner", "lam"):
        assert np.array_equal(vars(slot)[field][~alone], vars(full)[field][~alone])
    assert np.array_equal(slot.parameters, full.parameters)
    assert views[alone].equal(x[alone])
    assert views[~alone].equal(mixed[~alone])
    share = (plan(f"{name},probability=0.25", samples=40_000).epoch(0).slots[0].partner != np.arange(40_000)).mean()
    assert share == pytest.approx(0.25, abs=0.011)
    batch = next(maker.epoch(1))
    assert batch.partner_labels[torch.from_numpy(alone[:50])].equal(batch.labels[torch.from_numpy(alone[:50])])


def test_cutout_as_in_the_authors_code_is_a_quarter_of_the_side_in_the_mean_color(noise: Split) -> None:
    drawn = plan("cutout,side=0.25,fill=817c70")
    x, views = (Views(noise, drawn, 50, CPU).views(1, slot, range(150)) for slot in (0, 1))
    boxes = drawn.epoch(1).slots[0].parameters.tolist()
    for of, view, (top, bottom, left, right) in zip(x, views, boxes, strict=True):
        expected = of.clone()
        expected[:, top:bottom, left:right] = torch.tensor([0x81, 0x7C, 0x70], dtype=torch.uint8)[:, None, None]
        assert view.equal(expected)
    assert max(bottom - top for top, bottom, _, _ in boxes) == 8


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2), size=st.integers(32, 225))
def test_an_erased_part_lies_in_the_image(words: list[int], size: int) -> None:
    (box,), (lam,) = find_mix("erasing").draw(np.array([words], np.uint64), size)
    top, bottom, left, right = (int(edge) for edge in box)
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    assert lam == 1
    erased = words[0] & 0xFFFFFFFF < 2**31
    assert (bottom > top) == (right > left) == erased
    if erased:
        assert 0.015 < (bottom - top) * (right - left) / size**2 < 0.42
        assert 0.25 < (bottom - top) / (right - left) < 4


def test_erased_parts_are_as_in_the_paper() -> None:
    rows = plan("erasing", samples=40_000).epoch(0).slots[0].parameters.astype(int)
    height, width = rows[:, 1] - rows[:, 0], rows[:, 3] - rows[:, 2]
    erased = height > 0
    assert erased.mean() == pytest.approx(0.5, abs=0.0125)
    area = (height * width / 1024)[erased]
    assert abs(np.quantile(area, [0, 1]) - [0.02, 0.4]).max() < 0.02
    assert area.mean() == pytest.approx(0.19, abs=0.02)  # 0.21 less the large ones that do not fit
    for low, length in ((rows[:, 0], height), (rows[:, 2], width)):
        free = (32 - length)[erased]
        assert (low[erased] <= free).all()
        assert (low[erased] / np.maximum(free, 1))[free > 10].mean() == pytest.approx(0.5, abs=0.02)


def use(monkeypatch: pytest.MonkeyPatch, draw: Callable[..., Any], apply: Callable[..., Tensor]) -> ViewPlan:
    """A plan of an augmentation from outside."""
    monkeypatch.setitem(MIXES, "mine", MixInfo("a.module:make_mine"))
    monkeypatch.setattr("kdcache.views.mixes.import_object", lambda _: lambda: Mix(draw, apply))
    _made.cache_clear()
    return plan("mine")


def draws(rows: Any = None, lam: Any = None) -> Callable[..., Any]:
    def draw(words: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(words)
        return (
            np.zeros((count, 1), np.int16) if rows is None else rows(count),
            np.ones(count, np.float32) if lam is None else lam(count),
        )

    return draw


WRONG_VIEWS = {
    "float32 in 0 to 1": lambda x: x / 255,
    "float32 in 0 to 255": lambda x: x.float(),
    "too few rows": lambda x: x[:-1],
    "one row": lambda x: x[:1],
    "one channel": lambda x: x[:, :1],
    "int64": lambda x: x.long(),
    "a smaller image": lambda x: x[:, :, 1:],
    "channels last": lambda x: x.permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("kind", WRONG_VIEWS)
def test_views_of_a_wrong_shape_or_type_are_refused(kind: str, noise: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = use(monkeypatch, draws(), lambda first, second, parameters: WRONG_VIEWS[kind](first))
    with pytest.raises(KdcacheError, match=r"augmentation mine: its views: expected uint8 of shape \(64, 3, 32, 32\)"):
        next(Views(noise, drawn, 64, CPU).epoch(0))


WRONG_DRAWS = {
    "too few rows": draws(rows=lambda count: np.zeros((count - 1, 1))),
    "a vector": draws(rows=lambda count: np.zeros(count)),
    "too few lambdas": draws(lam=lambda count: np.ones(count - 1, np.float32)),
    "a column of lambdas": draws(lam=lambda count: np.ones((count, 1), np.float32)),
    "float64": draws(lam=np.ones),
    "lambda above 1": draws(lam=lambda count: np.full(count, 1.5, np.float32)),
    "lambda not a number": draws(lam=lambda count: np.full(count, np.nan, np.float32)),
}


@pytest.mark.parametrize("kind", WRONG_DRAWS)
def test_draws_of_a_wrong_shape_type_or_range_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = use(monkeypatch, WRONG_DRAWS[kind], lambda first, second, parameters: first)
    with pytest.raises(KdcacheError, match="augmentation mine: what it draws: expected "):
        drawn.epoch(0)
