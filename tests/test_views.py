"""The view table and the views made from it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.choices import MIXES
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.views import Batch, EpochTable, ViewPlan, Views, crop_flip, cutmix, mixup, rank_part, steps
from kdcache.views.mixes import draw_cutmix
from kdcache.views.operations import OPERATIONS, VALUES, apply_operations
from kdcache.views.plan import SAMPLES_PER_BLOCK, block_starts
from kdcache.views.policies import AUTO, RAND, WIDE

CPU = torch.device("cpu")


def plan(
    samples: int = 150, mix: str | None = "cutmix", slots: int = 2, seed: int = 0, crop_flip: bool = True
) -> ViewPlan:
    return ViewPlan(samples, 32, 4, crop_flip=crop_flip, seed=seed, mixes=(mix,) * slots if mix else ())


def columns(table: EpochTable) -> dict[str, np.ndarray]:
    found = {"order": table.order, "crop": table.crop, "flip": table.flip}
    for number, slot in enumerate(table.slots):
        found |= {f"{name}-{number}": column for name, column in vars(slot).items() if name != "mix"}
    return found


HASHED_AS = {"lam": "kept", "random_score": "lot"}
"""Names that fields had when the golden hashes, which cover them, were made."""


def digest(table: EpochTable) -> str:
    """Hash of the columns, in a fixed byte order and width."""
    sha = hashlib.sha256()
    for name, column in columns(table).items():
        field, dash, number = name.partition("-")
        sha.update(f"{HASHED_AS.get(field, field)}{dash}{number}".encode())
        sha.update(column.astype("<f8").tobytes())  # every column's values are exact in float64
    return sha.hexdigest()[:16]


# Made once by this code; they change only with PLAN_VERSION, and are the same on every machine.
GOLDEN = {
    (1000, "cutmix", 2, 0, 0): "e6a1280ad2f6471a",
    (1000, "cutmix", 2, 0, 7): "7dd521475f5a2cdf",
    (1000, "mixup", 1, 5, 0): "88f13a8f2380919a",
    (50, None, 0, 2**63 - 1, 959): "c585cf450f7324b3",
}


@pytest.mark.parametrize(("samples", "mix", "slots", "seed", "epoch"), GOLDEN)
def test_tables_are_the_same_on_every_machine(samples: int, mix: str | None, slots: int, seed: int, epoch: int) -> None:
    assert digest(plan(samples, mix, slots, seed).epoch(epoch)) == GOLDEN[samples, mix, slots, seed, epoch]


def test_epochs_and_seeds_differ_in_every_column() -> None:
    first = columns(plan().epoch(0))
    for other in (columns(plan().epoch(1)), columns(plan(seed=1).epoch(0))):
        assert [name for name in first if np.array_equal(first[name], other[name])] == []


@pytest.mark.parametrize("samples", [3, 63, 64, 65, 127, 128, 130, 1000])
def test_partners_permute_the_block_and_differ_between_slots(samples: int) -> None:
    table = plan(samples).epoch(2)
    assert np.array_equal(np.sort(table.order), np.arange(samples))
    positions, starts = np.arange(samples), block_starts(samples)
    block = np.searchsorted(starts, positions, side="right")
    assert np.diff(starts, append=samples).min() >= min(SAMPLES_PER_BLOCK, samples)
    for slot in table.slots:
        assert not (slot.partner == positions).any()
        assert np.array_equal(block[slot.partner], block)
        assert np.array_equal(np.sort(slot.partner), positions)
    assert not (table.slots[0].partner == table.slots[1].partner).any()


def test_shifts_reach_every_position_of_the_block() -> None:
    table = plan(SAMPLES_PER_BLOCK * 3000, slots=2).epoch(0)
    for slot in table.slots:
        shift = (slot.partner - np.arange(len(slot.partner)))[::SAMPLES_PER_BLOCK]
        assert set(shift) == set(range(1, SAMPLES_PER_BLOCK))


def test_plans_nest() -> None:
    two, one = plan(slots=2).epoch(3), plan(slots=1).epoch(3)
    both, strong = (replace(plan(), mixes=mixes).epoch(3) for mixes in (("cutmix", "mixup"), ("cutout", "cutmix")))
    for bare in (plan(mix=None, slots=0).epoch(3), plan(mix="mixup", slots=1).epoch(3), one, both, strong):
        assert all(np.array_equal(getattr(two, name), getattr(bare, name)) for name in ("order", "crop", "flip"))
    assert np.array_equal(plan(mix=None, slots=0, crop_flip=False).epoch(3).order, two.order)
    assert all(np.array_equal(value, columns(two)[name]) for name, value in columns(one).items() if "-" in name)


@pytest.mark.parametrize(("samples", "slots"), [(2, 0), (2, 1), (3, 3)])
def test_too_few_samples_are_refused(samples: int, slots: int) -> None:
    with pytest.raises(UsageError, match="training samples"):
        plan(samples, slots=slots)


def test_draws_are_uniform() -> None:
    table = plan(40_000, slots=1).epoch(0)
    counts = np.bincount(table.crop.reshape(-1), minlength=9)
    assert len(counts) == 9
    assert abs(counts / 80_000 - 1 / 9).max() < 0.006  # 5 standard deviations
    assert abs(table.flip.mean() - 0.5) < 0.0125
    assert abs(table.slots[0].random_score.mean() - 0.5) < 0.0075
    lam = plan(40_000, "mixup", 1).epoch(0).slots[0].lam
    assert abs(np.quantile(lam, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.0125
    assert 0 <= lam.min() < lam.max() < 1


@given(samples=st.integers(1, 400), batch_size=st.integers(2, 130))
@settings(max_examples=60)
def test_steps_cover_every_position_once_without_tiny_batches(samples: int, batch_size: int) -> None:
    found = steps(samples, batch_size)
    assert [position for step in found for position in step] == list(range(samples))
    assert all(len(step) == batch_size for step in found[:-1])
    assert samples == 1 or len(found[-1]) >= min(samples, max(2, min(16, batch_size // 2)))
    assert len(found[-1]) < batch_size + 16


@given(samples=st.integers(16, 400), batch_size=st.integers(16, 130), ranks=st.integers(1, 4))
@settings(max_examples=60)
def test_ranks_partition_every_step(samples: int, batch_size: int, ranks: int) -> None:
    found = steps(samples, batch_size)
    assert [position for step in found for position in step] == list(range(samples))
    for step in found:
        parts = [rank_part(step, rank, ranks) for rank in range(ranks)]
        assert [position for part in parts for position in part] == list(step)
        assert min(map(len, parts)) >= 2
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def by_address(batches: list[Batch]) -> dict[tuple[int, int], bytes]:
    return {
        (position, slot): batch.views[slot * len(batch) + row].float().numpy().tobytes()
        for batch in batches
        for slot in range(batch.slots + 1)
        for row, position in enumerate(batch.positions)
    }


@pytest.mark.parametrize("mix", [*MIXES, None])
def test_views_do_not_depend_on_the_batch_size(mix: str | None, noise: Split) -> None:
    drawn = plan(len(noise), mix, 2 if mix else 0)
    first, *others = (by_address(list(Views(noise, drawn, size, CPU).epoch(1))) for size in (64, 50, 7))
    assert len(first) == 150 * (3 if mix else 1)
    assert all(other == first for other in others)


def test_a_batch_has_the_labels_samples_and_partners_of_the_table(noise: Split) -> None:
    drawn = plan(len(noise))
    table = drawn.epoch(0)
    for batch in Views(noise, drawn, 40, CPU).epoch(0):
        rows = slice(batch.positions.start, batch.positions.stop)
        assert np.array_equal(batch.samples, table.order[rows])
        assert batch.labels.equal(noise.labels[batch.samples])
        partners = np.concatenate([table.order[slot.partner[rows]] for slot in table.slots])
        assert batch.partner_labels.equal(noise.labels[torch.from_numpy(partners)])


def test_clean_views_are_the_images(noise: Split) -> None:
    drawn = plan(len(noise), None, 0, crop_flip=False)
    for batch in Views(noise, drawn, 64, CPU).epoch(0):
        assert batch.views.equal(noise.images[batch.samples])
        assert np.array_equal(batch.standard_keys, batch.samples)


def test_crop_and_flip_match_a_simple_reference() -> None:
    table = plan(60).epoch(0)
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    views = crop_flip(images, torch.from_numpy(table.crop), torch.from_numpy(table.flip), 4)
    for image, view, (top, left), flip in zip(images.numpy(), views.numpy(), table.crop, table.flip, strict=True):
        window = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, top : top + 32, left : left + 32]
        assert np.array_equal(view, window[:, :, ::-1] if flip else window)


def test_cutmix_matches_a_simple_reference_and_lambda_is_exact() -> None:
    slot = plan(300).epoch(0).slots[0]
    first, second = torch.zeros(300, 3, 32, 32), torch.ones(300, 3, 32, 32)
    mixed = cutmix(first, second, torch.from_numpy(slot.parameters)).numpy()
    for view, (top, bottom, left, right), kept in zip(mixed, slot.parameters, slot.lam, strict=True):
        expected = np.zeros((3, 32, 32))
        expected[:, top:bottom, left:right] = 1
        assert np.array_equal(view, expected)
        assert kept == np.float32(1 - expected.mean())


def test_mixup_matches_a_simple_reference() -> None:
    first, second = (torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8) for _ in range(2))
    lam = torch.linspace(0, 1, 9)[:, None]
    expected = lam[:, :, None, None] * first.double() + (1 - lam[:, :, None, None].double()) * second.double()
    torch.testing.assert_close(mixup(first, second, lam).double(), expected, rtol=1e-6, atol=1e-4)


def test_mixed_labels_are_the_argmax_and_ties_go_to_the_lower_class(noise: Split) -> None:
    batch = next(Views(noise, plan(len(noise), slots=1), 64, CPU).epoch(0))
    own, partner = torch.tensor([2, 2, 2, 1, 3]), torch.tensor([1, 1, 1, 2, 3])
    made = Batch(**{**vars(batch), "labels": own, "partner_labels": partner, "positions": range(5),
                    "views": batch.views[:10], "lam": torch.tensor([0.51, 0.49, 0.5, 0.5, 0.2])})  # fmt: skip
    assert made.mixed_labels().tolist() == [2, 1, 1, 1, 3]


def reference_view(data: Split, drawn: ViewPlan, table: EpochTable, position: int) -> np.ndarray:
    """The x of a single position, (3, 32, 32) uint8."""
    image = data.images[table.order[position]].numpy()
    (top, left), pad = table.crop[position], drawn.padding
    window = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, top : top + 32, left : left + 32]
    return window[:, :, ::-1] if table.flip[position] else window


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_a_mixed_view_mixes_the_x_of_both_images(mix: str, noise: Split) -> None:
    drawn = plan(len(noise), mix)
    table = drawn.epoch(4)
    x = [reference_view(noise, drawn, table, position) for position in range(len(noise))]
    for batch in Views(noise, drawn, 50, CPU).epoch(4):
        for row, view in enumerate(batch.views.double().numpy()):
            position, slot = batch.positions[row % len(batch)], row // len(batch)
            if slot == 0:
                assert np.array_equal(view, x[position])
                continue
            of = table.slots[slot - 1]
            own, other = (x[place].astype(float) for place in (position, of.partner[position]))
            if mix == "mixup":
                share = float(of.parameters[position, 0])
                np.testing.assert_allclose(view, share * own + (1 - share) * other, atol=1e-4)
            else:
                top, bottom, left, right = of.parameters[position]
                own[:, top:bottom, left:right] = other[:, top:bottom, left:right]
                assert np.array_equal(view, own)
            assert batch.lam[row - len(batch)] == of.lam[position]
            assert batch.random_score[row - len(batch)] == of.random_score[position]


def test_a_strong_view_is_x_after_the_operations_of_its_row(noise: Split) -> None:
    spaces = {"autoaugment": AUTO, "randaugment,number=3,magnitude=20": RAND, "trivialaugment": WIDE}
    for mix, space in spaces.items():
        drawn = plan(len(noise), mix, 1)
        slot = drawn.epoch(4).slots[0]
        views = Views(noise, drawn, 50, CPU).views(4, 1, range(40))
        for position, view in enumerate(views):
            x = torch.from_numpy(reference_view(noise, drawn, drawn.epoch(4), position).copy())[None]
            for operation, level in slot.parameters[position].reshape(-1, 2).tolist():
                values = space.values(OPERATIONS[operation], level, 32, 32)
                x = apply_operations(x, np.array([operation]), np.array([values + (0,) * (VALUES - len(values))]))
            assert view.equal(x[0])
        assert len({view.numpy().tobytes() for view in views}) == 40


def test_cutout_blackens_a_square_of_half_the_side_and_lambda_is_1(noise: Split) -> None:
    drawn = plan(len(noise), "cutout", 1)
    slot = drawn.epoch(4).slots[0]
    x, views = (Views(noise, drawn, 50, CPU).views(4, number, range(150)) for number in (0, 1))
    inside = 0
    for view, of, (top, bottom, left, right) in zip(views, x, slot.parameters.tolist(), strict=True):
        assert not view[:, top:bottom, left:right].any()
        expected = of.clone()
        expected[:, top:bottom, left:right] = 0
        assert view.equal(expected)
        inside += (bottom - top, right - left) == (16, 16)
    assert inside > 20
    assert (slot.lam == 1).all()
    batch = next(Views(noise, drawn, 50, CPU).epoch(4))
    assert batch.mixed_labels().equal(batch.labels)
    assert batch.partner_labels.equal(batch.labels)


@pytest.mark.parametrize("kind", ["clean", "standard", "mixup-1", "cutmix-3"])
def test_the_plan_for_a_kind_has_that_view_in_its_last_slot(kind: str) -> None:
    ending = replace(plan(), mixes=("cutmix",)).with_last_kind(kind)
    assert ending.kinds[-1] == kind
    whole = replace(plan(), mixes=("trivialaugment", "mixup", "cutmix")).epoch(2)
    if kind == "cutmix-3":
        assert all(np.array_equal(value, columns(whole)[name]) for name, value in columns(ending.epoch(2)).items()
                   if name.endswith("-2"))  # fmt: skip


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2), size=st.integers(32, 225))
@settings(max_examples=60)
def test_a_box_has_the_drawn_area_and_center_and_is_clipped(words: list[int], size: int) -> None:
    ((box,), (kept,)) = draw_cutmix(np.array([words], np.uint64), size)
    top, bottom, left, right = (int(edge) for edge in box)
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    side = int(size * (1 - (words[0] >> 32) / 2**32) ** 0.5) // 2 * 2
    for low, high, centre in ((top, bottom, words[1] >> 32), (left, right, words[1] & 0xFFFFFFFF)):
        middle = centre * size >> 32
        assert (low, high) == (max(middle - side // 2, 0), min(middle + side // 2, size))
    assert kept == np.float32(1 - (bottom - top) * (right - left) / size**2)


def test_boxes_cover_the_image_and_all_sizes() -> None:
    slot = plan(40_000, slots=1).epoch(0).slots[0]
    top, bottom, left, right = slot.parameters.T.astype(int)
    for low, high in ((top, bottom), (left, right)):
        inside = (low > 0) & (high < 32)  # unclipped: the middle is the drawn center
        assert inside.sum() > 5000
        assert abs(((low + high) / 2)[inside].mean() - 15.5) < 0.6
    # The sample keeps half on average outside unclipped boxes, and more outside clipped ones.
    assert 0.55 < slot.lam.mean() < 0.75
    assert slot.lam.min() == 1 - 30 * 30 / 1024  # the largest box: half a side is a whole number, below 16
    assert slot.lam.max() == 1
    assert abs(np.corrcoef(top + bottom, left + right)[0, 1]) < 0.03


def test_draws_of_two_slots_are_uncorrelated() -> None:
    one, two = plan(40_000).epoch(0).slots
    for name in ("lam", "random_score"):
        assert abs(np.corrcoef(vars(one)[name], vars(two)[name])[0, 1]) < 0.025
    assert abs(np.corrcoef(one.lam, one.random_score)[0, 1]) < 0.025
