"""The cached teacher: teacher forwards, cache hits, and the same bits with and without a store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache import models
from kdcache.answers import budget
from kdcache.answers.budget import count_new_views
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import DEFAULT_ENCODING, Dense, TopK
from kdcache.answers.find import Answers
from kdcache.answers.open import make_cached_teacher, make_reader
from kdcache.answers.space import StoreContents, default_limit
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.answers.teacher import FORWARD_BATCH_SIZE, Teacher
from kdcache.choices import CACHES
from kdcache.compute import Compute
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from kdcache.views import ViewPlan
from tests import answers
from tests.stubs import stub

N = 150


def resnet8(precision: str) -> Teacher:
    """A network with the layers of the paper's."""
    return Teacher(models.build("resnet8", num_classes=4, seed=0), Compute(answers.CPU, precision))


def test_forwards_have_a_fixed_number_of_rows(noise: Split) -> None:
    teacher = answers.teacher()
    rows: list[int] = []
    teacher.network.body.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert teacher(noise.images).shape == (N, 4)
    assert rows == [FORWARD_BATCH_SIZE["cpu"]] * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_are_the_same_bits_in_any_order_and_any_batch(precision: str, noise: Split) -> None:
    teacher = resnet8(precision)
    whole = teacher(noise.images)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert teacher(noise.images[shuffled]).equal(whole[shuffled])
    assert teacher(noise.images[70:75]).equal(whole[70:75])


@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-5), ("bfloat16", 2**-5)])
def test_logits_of_another_forward_size_agree_within_rounding(precision: str, rounding: float, noise: Split) -> None:
    teacher = resnet8(precision)
    whole = teacher(noise.images)
    teacher.rows = 50
    again = teacher(noise.images)
    assert (again - whole).abs().max() <= rounding * whole.abs().max()


def test_logits_that_are_not_finite_in_the_codec_raise(noise: Split) -> None:
    network = stub(0)
    with torch.no_grad():
        network.body.head.bias[2] = 1e6  # finite in float32, not in float16
    teacher = Teacher(network, Compute(answers.CPU, "float32"))
    views = answers.views(noise)
    with pytest.raises(KdcacheError, match="expected values that are finite in float16"):
        CachedTeacher(teacher, views).logits(next(views.epoch(0)))
    assert CachedTeacher(teacher, views, encoding=Dense("float32")).logits(next(views.epoch(0))).isfinite().all()


def test_logits_have_the_precision_of_the_codec_and_no_gradient(noise: Split) -> None:
    views = answers.views(noise)
    found = CachedTeacher(answers.teacher(), views).logits(next(views.epoch(0)))
    assert found.dtype == torch.float32
    assert found.half().float().equal(found)
    assert not found.requires_grad
    assert not found.is_inference()  # inference tensors cannot be used in a loss


@pytest.fixture(scope="module")
def online(noise: Split) -> dict[tuple[int, str, int], bytes]:
    """Logits of two epochs without a store, in batches of 64."""
    logits = answers.all_logits(CachedTeacher(answers.teacher(), answers.views(noise)), 2)
    assert len(logits) == 2 * 3 * N
    return logits


@pytest.mark.parametrize("batch_size", [64, 7])  # as stored, and across the blocks of 64
@pytest.mark.parametrize("cache", CACHES)
def test_logits_are_the_same_bits_with_and_without_a_store_in_any_batch_size(
    cache: str, batch_size: int, online: dict[tuple[int, str, int], bytes], noise: Split, tmp_path: Path
) -> None:
    views = answers.views(noise, batch_size=batch_size)
    if cache == "off":
        assert answers.all_logits(CachedTeacher(answers.teacher(), views), 2) == online
        return
    for _ in range(2):
        cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, views, cache, epochs=2)
        assert answers.all_logits(cached_teacher, 2) == online


def counted(cached_teacher: CachedTeacher, epochs: int) -> tuple[int, int]:
    cached_teacher.pop_counts()
    answers.all_logits(cached_teacher, epochs)
    counts = cached_teacher.pop_counts().as_metrics()
    return counts["teacher_forwards"], counts["cache_hits"]


def test_views_are_computed_once_and_nested_plans_share_them(noise: Split, tmp_path: Path) -> None:
    def counts(**plan: Any) -> tuple[int, int]:
        return counted(
            answers.cached_teacher(tmp_path / "store.zarr", noise, answers.views(noise, **plan), epochs=2), 2
        )

    assert counts(aug="standard") == (2 * N, 0)
    assert counts(aug="cutmix-pick") == (4 * N, 2 * N)
    assert counts(aug="cutmix", batch_size=31) == (0, 4 * N)
    assert counts(aug="mixup") == (2 * N, 2 * N)
    assert counts(aug="cutmix-pick", seed=1) == (6 * N, 0)


def test_after_precompute_no_forwards_are_left(noise: Split, tmp_path: Path) -> None:
    for forwards in (6 * N, 0):
        cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, answers.views(noise), epochs=2)
        assert list(cached_teacher.precompute(2))[-1] == 6 * N == cached_teacher.num_stored(2)
        assert cached_teacher.pop_counts().forwards == forwards
    views = answers.views(noise)
    assert counted(answers.cached_teacher(tmp_path / "store.zarr", noise, views, epochs=2), 2) == (0, 6 * N)


@pytest.mark.parametrize("clean", [True, False])
def test_crop_and_flip_views_are_computed_once_across_epochs_and_seeds(
    clean: bool, noise: Split, tmp_path: Path
) -> None:
    epochs, where, space = 12, tmp_path / "store.zarr", StoreContents(1, 0, has_clean=clean)
    if clean:
        list(answers.cached_teacher(where, noise, answers.views(noise, "none")).precompute_clean())
    views = answers.views(noise, "standard")
    new = count_new_views(views.plan, dict.fromkeys(range(epochs)), space)
    assert counted(answers.cached_teacher(where, noise, views, "standard", epochs), epochs) == (new, epochs * N - new)
    space = StoreContents.of_store(AnswerStore(where), read_commits=True)
    other = answers.views(noise, "standard", seed=5)
    further = count_new_views(other.plan, dict.fromkeys(range(epochs)), space)
    assert 0 < further < new
    assert counted(answers.cached_teacher(where, noise, other, "standard", epochs), epochs)[0] == further
    # Mixed views are computed, although x is in the index.
    mixed = answers.views(noise, "cutmix", seed=5)
    assert counted(answers.cached_teacher(where, noise, mixed, "standard", epochs), 1) == (N, N)


def test_new_views_are_counted_as_by_a_set(noise: Split) -> None:
    plan = answers.views(noise, "standard").plan
    seen = set()
    for epoch in range(9):
        table = plan.epoch(epoch)
        rows = zip(table.order.tolist(), table.crop.tolist(), table.flip.tolist(), strict=True)
        seen |= {(sample, *crop, flip) for sample, crop, flip in rows}
    assert count_new_views(plan, dict.fromkeys(range(9))) == len(seen)
    center = {(sample, 4, 4, False) for sample in range(N)}
    stored = StoreContents(1, 0, has_clean=True)
    assert count_new_views(plan, dict.fromkeys(range(9)), stored) == len(seen - center)


def test_beyond_the_size_limit_stored_logits_are_used_and_others_computed(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise, "cutmix")
    size = answers.store(where, answers.teacher(), noise).table_bytes
    expected = answers.all_logits(CachedTeacher(answers.teacher(), views), 3)
    for forwards in (6 * N, 3 * N):
        cached_teacher = answers.cached_teacher(where, noise, views, "replay", 3, limit=int(3.5 * size))
        assert answers.all_logits(cached_teacher, 3) == expected
        assert cached_teacher.pop_counts().forwards == forwards
        assert len(cached_teacher.store.table_paths()) == 3  # type: ignore[union-attr]
    # auto keeps all or nothing, but uses what is stored.
    cached_teacher = answers.cached_teacher(where, noise, views, "auto", 3, limit=int(3.5 * size))
    assert counted(cached_teacher, 3) == (3 * N, 3 * N)


def test_without_space_for_a_table_the_index_holds_what_fits_during_the_run(noise: Split, tmp_path: Path) -> None:
    where, views, epochs = tmp_path / "store.zarr", answers.views(noise, "standard"), 30
    limit = answers.store(where, answers.teacher(), noise).table_bytes - 1
    cached_teacher = answers.cached_teacher(where, noise, views, "standard", epochs, limit)
    for _ in range(2):
        forwards, hits = counted(cached_teacher, epochs)
        assert forwards + hits == epochs * N
        assert hits > limit // 8 // 8  # logits take 8 bytes, and a tenth of the views recur
    assert forwards < epochs * N - limit // 8  # the index still has the rows of the first time
    assert cached_teacher.store.table_paths() == []  # type: ignore[union-attr]


def test_stored_clean_logits_are_in_the_order_of_the_samples(noise: Split, tmp_path: Path) -> None:
    views = answers.views(noise, "none")
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, views, "clean")
    assert cached_teacher.pop_counts() == (N, 0)
    assert cached_teacher.store is not None
    table = cached_teacher.store.table(CLEAN)
    stored = [table.read(chunk) for chunk in range(len(table.chunks))]
    logits = torch.cat([columns["logits"] for columns in stored if columns is not None])
    assert logits.equal(answers.teacher()(noise.images).half())
    assert counted(cached_teacher, 1) == (0, N)
    assert cached_teacher.pop_counts() == (0, 0)


def test_a_reader_uses_stored_logits_and_writes_nothing(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise, "cutmix")
    list(answers.cached_teacher(where, noise, views, epochs=1).precompute(1))
    teacher = answers.teacher()
    store = answers.store(where, teacher, noise)
    reader = make_reader(Answers.of_store(teacher, answers.dataset(noise), store), views)
    before = store.location.list_keys()
    for epoch, counts in ((0, (0, N)), (1, (N, 0))):
        for batch in views.epoch(epoch):
            assert reader.logits(batch, first=1).equal(CachedTeacher(teacher, views).logits(batch)[len(batch) :])
        assert tuple(reader.pop_counts().as_metrics().values()) == counts
    assert store.location.list_keys() == before


REFUSALS = {
    "teacher": "teacher",
    "dataset": "dataset",
    "teacher precision": "teacher precision",
    "dtype": "dtype",
    "padding": "padding",
    "plan version": "plan version",
}


@pytest.mark.parametrize("field", REFUSALS)
def test_a_store_with_another_fingerprint_is_refused(
    field: str, noise: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "store.zarr"
    first = answers.store(where, answers.teacher(), noise)
    teacher, data = answers.teacher(precision="bfloat16" if field == "teacher precision" else "float32"), noise
    if field == "teacher":
        with torch.no_grad():
            teacher.network.body.head.bias[0] += 1e-3
    if field == "dataset":
        images = noise.images.clone()
        images[149, 2, 31, 31] ^= 1
        data = Split(images, noise.labels)
    if field == "plan version":
        monkeypatch.setattr("kdcache.answers.find.PLAN_VERSION", 99)
    encoding = TopK("float16", 2) if field == "dtype" else DEFAULT_ENCODING
    with pytest.raises(UsageError) as refusal:
        answers.store(where, teacher, data, encoding, padding=5 if field == "padding" else 4)
    (line,) = refusal.value.problems
    assert f"store {where}: {field}: expected" in line
    assert f"got {first.fingerprint[field]}" in line
    assert "--store" in line


def test_an_interrupted_precompute_keeps_complete_chunks_and_resumes(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise)
    first = answers.cached_teacher(where, noise, views, epochs=2)
    forwards: list[int] = []

    def interrupt(module: object, inputs: object, output: object) -> None:
        forwards.append(1)
        if len(forwards) == 8:  # in the third table of six
            raise KeyboardInterrupt

    hook = first.teacher.network.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(first.precompute(2))
    hook.remove()
    later = answers.cached_teacher(where, noise, views, epochs=2)
    list(later.precompute(2))
    assert later.pop_counts().forwards == 4 * N
    assert answers.all_logits(later, 2) == answers.all_logits(CachedTeacher(answers.teacher(), views), 2)


class PixelTeacher(Teacher):
    """A teacher whose logits are pixel values, for more views than a network could process."""

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        return views[:, 0, 0, :4].float()


def test_over_240_epochs_each_distinct_view_is_computed_once(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (128, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.zeros(128, dtype=torch.int64))
    like = answers.teacher()
    teacher = PixelTeacher(like.network, like.compute)
    views = answers.views(split, "standard", batch_size=128)
    opened = answers.opened(tmp_path / "store.zarr", teacher, split)
    cached_teacher = make_cached_teacher(opened, views, "standard", 240)
    for epoch in range(240):
        for batch in views.epoch(epoch):
            assert cached_teacher.logits(batch).equal(teacher(batch.views))
    forwards = cached_teacher.pop_counts().forwards
    assert forwards == count_new_views(views.plan, dict.fromkeys(range(240)))
    assert forwards / 128 == pytest.approx(162 * (1 - (1 - 1 / 162) ** 240), abs=1)  # 125.3
    table = np.zeros((128, 162), bool)
    for epoch in range(240):
        table.reshape(-1)[views.plan.standard_keys(views.plan.epoch(epoch), np.arange(128))] = True
    assert table.sum(1).max() <= 162
    assert table.sum() == forwards


def test_auto_uses_the_index_if_it_saves_enough_and_keeps_all_or_nothing(noise: Split) -> None:
    def choose(aug: str, epochs: int, existing: frozenset[str] = frozenset(), limit: int = 10**6) -> tuple[int, bool]:
        space = StoreContents.with_tables(existing, 1000, limit)
        policy = budget.choose_policy("auto", answers.views(noise, aug).plan, epochs, space)
        return len(policy.stored_kinds), policy.indexed

    gain = {epochs: epochs / (162 * (1 - (161 / 162) ** epochs)) for epochs in (100, 200)}
    assert gain[100] < 1.5 < gain[200]
    assert choose("standard", 100) == (1, False)
    assert choose("standard", 200) == (1, True)
    assert choose("cutmix-pick", 300) == (3, False)  # x is one of three views
    assert choose("cutmix-pick", 300, limit=899_999) == (0, False)
    other = frozenset(f"replay/seed-9/epoch-{epoch:04d}/standard" for epoch in range(200))
    assert choose("standard", 100, other) == (1, True)  # it has half of the views
    own = frozenset(f"replay/seed-0/epoch-{epoch:04d}/standard" for epoch in range(200))
    assert choose("standard", 200, own) == (1, False)  # no forwards are left


def test_too_many_samples_for_an_index() -> None:
    plan = ViewPlan(500_000, 32, 4, crop_flip=True, seed=0)
    assert not budget.choose_policy("auto", plan, 240, StoreContents(1, 10**9)).indexed
    with pytest.raises(UsageError, match="expected at most 414252 samples with 162 views each, got 500000 samples"):
        budget.choose_policy("standard", plan, 240, StoreContents(1, 10**9))


def test_the_default_limit_does_not_shrink_as_the_store_grows() -> None:
    for free, stored, limit in ((50, 0, 5), (47, 3, 5), (500, 0, 10), (0, 0, 0)):
        assert default_limit(free * 10**9, stored * 10**9) == limit * 10**9
    assert default_limit(None, 0) == 10 * 10**9


def test_without_space_for_clean_views_they_are_computed_once_per_run(noise: Split, tmp_path: Path) -> None:
    views = answers.views(noise, "none")
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, views, "auto", 2, limit=N * 8)
    assert counted(cached_teacher, 2) == (N, N)
    assert cached_teacher.store.table_paths() == []  # type: ignore[union-attr]


def test_a_damaged_chunk_is_rewritten_even_without_space_for_new_tables(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise, "standard")
    list(answers.cached_teacher(where, noise, views, epochs=1).precompute(1))
    path = where / "replay" / "seed-0" / "epoch-0000" / "standard" / "logits" / "c" / "0" / "0"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert counted(answers.cached_teacher(where, noise, views, "auto", 1, limit=0), 1) == (N, 0)
    assert path.read_bytes() == whole


def test_rows_that_another_process_wrote_are_added_to_the_index(noise: Split, tmp_path: Path) -> None:
    where, epochs = tmp_path / "store.zarr", 20
    views = [answers.views(noise, "standard") for _ in range(2)]
    both = [answers.cached_teacher(where, noise, one, "standard", epochs) for one in views]
    forwards = 0
    for epoch in range(epochs):  # they take turns in being the first
        for cached_teacher in both[:: 1 if epoch % 2 else -1]:
            for batch in cached_teacher.views.epoch(epoch):
                cached_teacher.logits(batch)
            forwards += cached_teacher.pop_counts().forwards
    assert forwards == count_new_views(views[0].plan, dict.fromkeys(range(epochs)))
