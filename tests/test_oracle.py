"""The cached teacher: what it asks, what it remembers, and that an answer is the same bits whichever way it came."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.analysis.questions import Filled, distinct
from kdcache.answers import budget
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.codec import DENSE, Dense, TopK
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.answers.teacher import FORWARD_ROWS, Teacher
from kdcache.choices import CACHES
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from kdcache.views import Plan
from tests import answers

N = 150


def test_forwards_have_a_fixed_number_of_rows(noise: Split) -> None:
    teacher = answers.teacher()
    rows: list[int] = []
    teacher.network.body.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert teacher(noise.images).shape == (N, 4)
    assert rows == [FORWARD_ROWS["cpu"]] * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_answer_is_the_same_bits_in_any_order_with_any_neighbours(precision: str, noise: Split) -> None:
    teacher = answers.teacher(precision=precision)
    whole = teacher(noise.images)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert teacher(noise.images[shuffled]).equal(whole[shuffled])
    assert teacher(noise.images[70:75]).equal(whole[70:75])


@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-5), ("bfloat16", 2**-5)])
def test_with_another_forward_size_answers_agree_within_the_rounding(
    precision: str, rounding: float, noise: Split
) -> None:
    teacher = answers.teacher(precision=precision)
    whole = teacher(noise.images)
    teacher.rows = 50
    again = teacher(noise.images)
    assert (again - whole).abs().max() <= rounding * whole.abs().max()


def test_an_answer_that_is_not_finite_in_the_store_stops_the_run(noise: Split) -> None:
    teacher = answers.teacher()
    with torch.no_grad():
        teacher.network.body.head.bias[2] = 1e6  # finite in float32, not in float16
    views = answers.views(noise)
    with pytest.raises(KdcacheError, match="not finite in float16"):
        CachedTeacher(teacher, views).ask(next(views.epoch(0)))
    assert CachedTeacher(teacher, views, format=Dense("float32")).ask(next(views.epoch(0))).isfinite().all()


def test_answers_have_the_precision_of_the_store_and_ask_for_no_gradient(noise: Split) -> None:
    views = answers.views(noise)
    found = CachedTeacher(answers.teacher(), views).ask(next(views.epoch(0)))
    assert found.dtype == torch.float32
    assert found.half().float().equal(found)
    assert not found.requires_grad
    assert not found.is_inference()  # else no loss could be built on them


@pytest.mark.parametrize("batch_size", [64, 50, 7])
@pytest.mark.parametrize("cache", CACHES)
def test_answers_are_the_same_bits_with_and_without_any_store_in_any_batch(
    cache: str, batch_size: int, noise: Split, tmp_path: Path
) -> None:
    online = answers.ask(CachedTeacher(answers.teacher(), answers.views(noise)), 2)
    assert len(online) == 2 * 3 * N
    if cache == "off":
        assert answers.ask(CachedTeacher(answers.teacher(), answers.views(noise, batch_size=batch_size)), 2) == online
        return
    for _ in range(2):
        views = answers.views(noise, batch_size=batch_size)
        assert answers.ask(answers.cached_teacher(tmp_path / "store.zarr", noise, views, cache, epochs=2), 2) == online


def counted(cached_teacher: CachedTeacher, epochs: int) -> tuple[int, int]:
    cached_teacher.pop_counts()
    answers.ask(cached_teacher, epochs)
    counts = cached_teacher.pop_counts().as_metrics()
    return counts["teacher_forwards"], counts["cache_hits"]


def test_a_plan_is_asked_once_and_plans_that_nest_share_the_answers(noise: Split, tmp_path: Path) -> None:
    def ask(**plan: Any) -> tuple[int, int]:
        return counted(
            answers.cached_teacher(tmp_path / "store.zarr", noise, answers.views(noise, **plan), epochs=2), 2
        )

    assert ask(aug="standard") == (2 * N, 0)
    assert ask(aug="cutmix-pick") == (4 * N, 2 * N)
    assert ask(aug="cutmix", batch_size=31) == (0, 4 * N)
    assert ask(aug="mixup") == (2 * N, 2 * N)
    assert ask(aug="cutmix-pick", seed=1) == (6 * N, 0)


def test_a_filled_store_leaves_no_question_and_filling_it_again_asks_nothing(noise: Split, tmp_path: Path) -> None:
    for asked in (6 * N, 0):
        ahead = answers.cached_teacher(tmp_path / "store.zarr", noise, answers.views(noise), epochs=2)
        assert list(ahead.fill(2))[-1] == 6 * N == ahead.lam(2)
        assert ahead.count().asked == asked
    views = answers.views(noise)
    assert counted(answers.cached_teacher(tmp_path / "store.zarr", noise, views, epochs=2), 2) == (0, 6 * N)


@pytest.mark.parametrize("clean", [True, False])
def test_standard_views_are_asked_once_in_whichever_epoch_and_seed_they_come_up(
    clean: bool, noise: Split, tmp_path: Path
) -> None:
    epochs, where, filled = 12, tmp_path / "store.zarr", Filled()
    if clean:
        list(answers.cached_teacher(where, noise, answers.views(noise, "none")).precompute_clean())
        filled = Filled({CLEAN: np.ones(1, bool)}, N)
    views = answers.views(noise, "standard")
    new = distinct(views.plan, range(epochs), filled)
    assert counted(answers.cached_teacher(where, noise, views, "standard", epochs), epochs) == (new, epochs * N - new)
    filled = Filled.of(AnswerStore(where))
    other = answers.views(noise, "standard", seed=5)
    further = distinct(other.plan, range(epochs), filled)
    assert 0 < further < new
    assert counted(answers.cached_teacher(where, noise, other, "standard", epochs), epochs)[0] == further
    # Mixed views are asked, whatever x is known.
    mixed = answers.views(noise, "cutmix", seed=5)
    assert counted(answers.cached_teacher(where, noise, mixed, "standard", epochs), 1) == (N, N)


def test_distinct_views_are_counted_as_sets_are(noise: Split) -> None:
    plan = answers.views(noise, "standard").plan
    seen = set()
    for epoch in range(9):
        table = plan.epoch(epoch)
        rows = zip(table.order.tolist(), table.crop.tolist(), table.flip.tolist(), strict=True)
        seen |= {(sample, *crop, flip) for sample, crop, flip in rows}
    assert distinct(plan, range(9)) == len(seen)
    middle = {(sample, 4, 4, False) for sample in range(N)}
    assert distinct(plan, range(9), Filled({CLEAN: np.ones(1, bool)}, N)) == len(seen - middle)


def test_without_room_further_answers_are_asked_and_those_that_are_there_used(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise, "cutmix")
    size = answers.store(where, answers.teacher(), noise).table_bytes
    expected = answers.ask(CachedTeacher(answers.teacher(), views), 3)
    for asked in (6 * N, 3 * N):
        cached_teacher = answers.cached_teacher(where, noise, views, "replay", 3, limit=int(3.5 * size))
        assert answers.ask(cached_teacher, 3) == expected
        assert cached_teacher.pop_counts().forwards == asked
        assert len(cached_teacher.store.tables()) == 3  # type: ignore[union-attr]
    # auto keeps all or nothing, but looks up what is there.
    cached_teacher = answers.cached_teacher(where, noise, views, "auto", 3, limit=int(3.5 * size))
    assert counted(cached_teacher, 3) == (3 * N, 3 * N)


def test_without_room_for_a_table_the_index_remembers_what_fits_within_the_run(noise: Split, tmp_path: Path) -> None:
    where, views, epochs = tmp_path / "store.zarr", answers.views(noise, "standard"), 30
    limit = answers.store(where, answers.teacher(), noise).table_bytes - 1
    cached_teacher = answers.cached_teacher(where, noise, views, "standard", epochs, limit)
    for _ in range(2):  # the second time, what was remembered first is still known
        asked, answered = counted(cached_teacher, epochs)
        assert asked + answered == epochs * N
        assert answered > limit // 8 // 8  # an answer takes 8 bytes, and a tenth of the views come up again
    assert asked < epochs * N - limit // 8
    assert cached_teacher.store.tables() == []  # type: ignore[union-attr]


def test_clean_answers_are_those_of_the_samples_in_their_order(noise: Split, tmp_path: Path) -> None:
    views = answers.views(noise, "none")
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, views, "clean")
    assert cached_teacher.pop_counts() == (N, 0)
    rows, logits = zip(*cached_teacher.clean(), strict=True)
    assert [sample for part in rows for sample in part] == list(range(N))
    assert torch.cat(logits).equal(answers.teacher()(noise.images).half().float())
    assert counted(cached_teacher, 1) == (0, N)
    assert cached_teacher.pop_counts() == (0, 0)


def test_an_analysis_reads_what_is_there_and_writes_nothing(noise: Split, tmp_path: Path) -> None:
    from kdcache.answers.replay import Replay

    where, views = tmp_path / "store.zarr", answers.views(noise, "cutmix")
    list(answers.cached_teacher(where, noise, views, epochs=1).fill(1))
    teacher = answers.teacher()
    store = answers.store(where, teacher, noise)
    reader = CachedTeacher(teacher, views, store=store, replay=Replay(store, 0, views.plan.kinds))
    before = store.place.list_keys()
    for epoch, counts in ((0, (0, N)), (1, (N, 0))):
        for batch in views.epoch(epoch):
            assert reader.ask(batch, first=1).equal(CachedTeacher(teacher, views).ask(batch)[len(batch) :])
        assert tuple(reader.count().as_metrics().values()) == counts
    assert store.place.list_keys() == before


REFUSALS = {
    "teacher": "teacher",
    "dataset": "dataset",
    "teacher precision": "teacher precision",
    "dtype": "dtype",
    "padding": "padding",
    "plan version": "plan version",
}


@pytest.mark.parametrize("field", REFUSALS)
def test_answers_are_refused_for_anything_else(
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
        monkeypatch.setattr("kdcache.setup.PLAN_VERSION", 99)
    format = TopK("float16", 2) if field == "dtype" else DENSE
    with pytest.raises(UsageError) as refusal:
        answers.store(where, teacher, data, format, padding=5 if field == "padding" else 4)
    (line,) = refusal.value.problems
    assert f"another {field} " in line
    assert f"given {first.fingerprint[field]}" in line
    assert "allowed" in line


def test_a_fill_that_is_interrupted_keeps_what_is_whole_and_goes_on(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise)
    ahead = answers.cached_teacher(where, noise, views, epochs=2)
    forwards: list[int] = []

    def interrupt(module: object, given: object, found: object) -> None:
        forwards.append(1)
        if len(forwards) == 8:  # in the third table of six
            raise KeyboardInterrupt

    hook = ahead.teacher.network.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(ahead.fill(2))
    hook.remove()
    later = answers.cached_teacher(where, noise, views, epochs=2)
    list(later.fill(2))
    assert later.count().asked == 4 * N
    assert answers.ask(later, 2) == answers.ask(CachedTeacher(answers.teacher(), views), 2)


class Counting(Teacher):
    """A teacher that answers by arithmetic, for questions too many for a network."""

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        return views[:, 0, 0, :4].float()


def test_over_240_epochs_a_sample_has_as_many_questions_as_distinct_views(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.zeros(400, dtype=torch.int64))
    like = answers.teacher()
    teacher = Counting(like.network, like.compute)
    views = answers.views(split, "standard", batch_size=400)
    store = answers.store(tmp_path / "store.zarr", teacher, split)
    cached_teacher = CachedTeacher.with_store(teacher, views, store, "standard", 240)
    for epoch in range(240):
        for batch in views.epoch(epoch):
            assert cached_teacher.logits(batch).equal(teacher(batch.views))
    asked = cached_teacher.pop_counts().forwards
    assert asked == distinct(views.plan, range(240))
    assert asked / 400 == pytest.approx(162 * (1 - (1 - 1 / 162) ** 240), abs=1)  # 125.3
    table = np.zeros((400, 162), bool)
    for epoch in range(240):
        table.reshape(-1)[views.plan.standard_keys(views.plan.epoch(epoch), np.arange(400))] = True
    assert table.sum(1).max() <= 162
    assert table.sum() == asked


def test_auto_opens_the_index_where_it_saves_enough_and_keeps_all_or_nothing(noise: Split) -> None:
    def choose(aug: str, epochs: int, existing: frozenset[str] = frozenset(), limit: int = 10**6) -> tuple[int, bool]:
        choice = budget.choose("auto", answers.views(noise, aug).plan, epochs, budget.Room(existing, 1000, limit))
        return len(choice.keep), choice.indexed

    gain = {epochs: epochs / (162 * (1 - (161 / 162) ** epochs)) for epochs in (100, 200)}
    assert gain[100] < 1.5 < gain[200]
    assert choose("standard", 100) == (1, False)
    assert choose("standard", 200) == (1, True)
    assert choose("cutmix-pick", 300) == (3, False)  # of three questions, one is about x
    assert choose("cutmix-pick", 300, limit=899_999) == (0, False)
    other = frozenset(f"replay/seed-9/epoch-{epoch:04d}/standard" for epoch in range(200))
    assert choose("standard", 100, other) == (1, True)  # half of the views are known from there
    own = frozenset(f"replay/seed-0/epoch-{epoch:04d}/standard" for epoch in range(200))
    assert choose("standard", 200, own) == (1, False)  # nothing is left to ask


def test_the_standard_views_of_too_many_samples_have_no_index() -> None:
    plan = Plan(500_000, 32, 4, crop_flip=True, seed=0)
    assert not budget.choose("auto", plan, 240, budget.Room(frozenset(), 1, 10**9)).indexed
    with pytest.raises(UsageError, match="--cache standard: expected 414252 samples of 162 views each, got 500000"):
        budget.choose("standard", plan, 240, budget.Room(frozenset(), 1, 10**9))


def test_the_room_of_a_store_does_not_shrink_as_it_fills() -> None:
    for free, stored, room in ((50, 0, 5), (47, 3, 5), (500, 0, 10), (0, 0, 0)):
        assert budget.default_limit(free * 10**9, stored * 10**9) == room * 10**9
    assert budget.default_limit(None, 0) == 10 * 10**9


def test_without_room_for_clean_answers_they_are_remembered_within_the_run(noise: Split, tmp_path: Path) -> None:
    views = answers.views(noise, "none")
    cached_teacher = answers.cached_teacher(tmp_path / "store.zarr", noise, views, "auto", 2, limit=N * 8)
    assert counted(cached_teacher, 2) == (N, N)
    assert cached_teacher.store.tables() == []  # type: ignore[union-attr]


def test_a_damaged_chunk_is_written_anew_even_where_no_table_would_be_begun(noise: Split, tmp_path: Path) -> None:
    where, views = tmp_path / "store.zarr", answers.views(noise, "standard")
    list(answers.cached_teacher(where, noise, views, epochs=1).fill(1))
    path = where / "replay" / "seed-0" / "epoch-0000" / "standard" / "logits" / "c" / "0" / "0"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert counted(answers.cached_teacher(where, noise, views, "auto", 1, limit=0), 1) == (N, 0)
    assert path.read_bytes() == whole


def test_what_another_oracle_asks_meanwhile_is_learnt_as_it_is_read(noise: Split, tmp_path: Path) -> None:
    where, epochs = tmp_path / "store.zarr", 20
    views = [answers.views(noise, "standard") for _ in range(2)]
    both = [answers.cached_teacher(where, noise, one, "standard", epochs) for one in views]
    asked = 0
    for epoch in range(epochs):  # they take turns in being the first
        for cached_teacher in both[:: 1 if epoch % 2 else -1]:
            for batch in cached_teacher.views.epoch(epoch):
                cached_teacher.logits(batch)
            asked += cached_teacher.pop_counts().forwards
    assert asked == distinct(views[0].plan, range(epochs))
