"""Label disagreement on a case that can be worked out on paper, and its interval."""

import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kdcache.stages import train_teacher
from torchvision.models import resnet18

from kdcache.analysis.disagreement import MixedSamples, Share, Study, count, study
from kdcache.analysis.subject import Subject, open_subject
from kdcache.answers.store import AnswerStore
from kdcache.config import TeacherConfig
from kdcache.errors import UsageError
from kdcache.views import Batch


def by_hand() -> MixedSamples:
    """Six samples of seven classes. The teacher finds its own class likeliest, and then the others from 6 downwards.

    ====  =====  =======  ====  ==========  =======  ========  =================  ==========
    row   label  partner  kept  mix says    teacher  disputed  right when clean   in top-5
    ====  =====  =======  ====  ==========  =======  ========  =================  ==========
    0     0      1        0.90  0           0        no        yes                yes
    1     0      1        0.25  1           0        yes       yes                no
    2     2      1        0.50  1 (a tie)   1        no        no                 yes
    3     2      4        0.50  2 (a tie)   4        yes       no                 yes
    4     2      2        0.10  2           6        yes       yes                yes
    5     1      1        1.00  1           1        no        yes                yes
    ====  =====  =======  ====  ==========  =======  ========  =================  ==========
    """
    labels, partners = torch.tensor([0, 0, 2, 2, 2, 1]), torch.tensor([1, 1, 1, 4, 2, 1])
    lam = torch.tensor([0.9, 0.25, 0.5, 0.5, 0.1, 1.0])
    batch = Batch(
        epoch=0,
        step=0,
        positions=range(6),
        global_positions=range(6),
        samples=torch.arange(6),
        labels=labels,
        views=torch.zeros(12, 3, 4, 4, dtype=torch.uint8),
        partner_labels=partners,
        lam=lam,
        random_score=torch.zeros(6),
        standard_keys=np.arange(6),
    )
    logits = 0.1 * torch.arange(7.0).expand(6, 7).clone()
    logits[torch.arange(6), torch.tensor([0, 0, 1, 4, 6, 1])] += 5
    return MixedSamples.of(batch, logits, torch.tensor([True, True, False, False, True, True]))


def test_the_case_worked_out_by_hand() -> None:
    # Top-5 of row 1: 0, 6, 5, 4, 3, without class 1. Of row 3: 4, 6, 5, 3, 2, with class 2. Of row 4: 6, 5, 4, 3, 2.
    found = count(by_hand(), classes=7)
    shares = {name: (share.count, share.of) for name, share in vars(found).items() if isinstance(share, Share)}
    assert shares == {
        "overall": (3, 6),
        "two_classes": (2, 4),
        "same_class": (1, 2),
        "although_right": (2, 6),
        "where_right": (2, 4),
        "one_of_two": (5, 6),
        "disputed_one_of_two": (2, 3),
        "in_top5": (5, 6),
        "disputed_in_top5": (2, 3),
    }
    bins = {round(10 * low): (share.count, share.of) for low, _, share in found.by_lambda}
    filled = {place: share for place, share in bins.items() if share != (0, 0)}
    assert filled == {1: (1, 1), 2: (1, 1), 5: (1, 2), 9: (0, 2)}
    by_class = [(share.count, share.of) for share in found.by_class]
    assert by_class == [(0, 1), (1, 3), (2, 2), *[(0, 0)] * 4]
    assert found.overall.percent == 50.0


def test_the_interval_is_wilsons() -> None:
    # Agresti and Coull's textbook case: 10 of 10 gives 72.2 to 100.
    low, high = Share(10, 10).interval or (0, 0)
    assert low == pytest.approx(72.2467, abs=1e-3)
    assert high == pytest.approx(100.0)
    assert Share(0, 0).interval is None


@pytest.mark.parametrize("share", [0.05, 0.521])
def test_the_interval_covers_the_truth_about_95_times_in_100(share: float) -> None:
    draws, n = 2000, 300
    counts = np.random.Generator(np.random.PCG64(3)).binomial(n, share, draws)
    covered = sum(low <= 100 * share <= high for low, high in (Share(int(k), n).interval or (0, 0) for k in counts))
    assert covered / draws == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws) + 0.01)


def test_figures_do_not_depend_on_the_order_of_samples() -> None:
    samples = by_hand()
    rows = list(range(6))
    random.Random(1).shuffle(rows)
    shuffled = MixedSamples(*(tensor[rows] for tensor in vars(samples).values()))
    assert count(shuffled, 7) == count(samples, 7)


def figures(found: Study) -> dict[str, object]:
    return found.as_json() | {"teacher": None}


def counted_one_by_one(subject: Subject, samples: int, aug: str) -> tuple[int, int]:
    """Count the disputed labels, and those on both of whose clean images the teacher is right, view by view."""
    views, disputed, although_right, done = subject.views(aug, seed=4), 0, 0, 0
    labels, clean = subject.images.labels, subject.teacher(subject.images.images).argmax(1)
    for epoch in range(9):
        table = views.plan.epoch(epoch)
        slot = table.slots[0]
        answers = subject.teacher(views.views(epoch, 1, range(views.plan.samples)))
        for place in range(views.plan.samples):
            if done == samples:
                return disputed, although_right
            pair = torch.from_numpy(table.order[[place, slot.partner[place]]])
            mixed = np.zeros(subject.data.num_classes)
            np.add.at(mixed, labels[pair].numpy(), [slot.lam[place], 1 - slot.lam[place]])
            differs = int(answers[place].half().argmax()) != int(mixed.argmax())
            disputed += differs
            although_right += differs and bool((clean[pair] == labels[pair]).all())
            done += 1
    raise AssertionError


@pytest.mark.parametrize("aug", ["cutmix", "mixup"])
def test_a_study_agrees_with_counting_one_by_one(aug: str, teacher: Path) -> None:
    subject = open_subject(str(teacher), device="cpu")
    found = study(subject, samples=200, seed=4, aug=aug)  # two epochs of 90, and a part of the third
    overall, right = found.disagreement.overall, found.disagreement.although_right
    assert (overall.count, overall.of) == (counted_one_by_one(subject, 200, aug)[0], 200)
    assert (right.count, right.of) == (counted_one_by_one(subject, 200, aug)[1], 200)
    assert 0 < overall.count < 200
    assert found.clean_error.of == 90
    surest = [example.teacher[0][1] for example in found.examples]
    assert surest == sorted(surest, reverse=True)
    assert len(surest) == min(12, overall.count)
    assert all(example.teacher[0][0] != example.label[0][0] for example in found.examples if len(example.label) > 1)


def test_a_teacher_of_a_part_is_asked_about_that_part(small: dict[str, object], tmp_path: Path) -> None:
    part = {"train_fraction": 0.5, "val_fraction": 0.2, "out": tmp_path / "run"}
    run = train_teacher(TeacherConfig.load(**{**small, **part}))
    subject = open_subject(str(run.path), device="cpu")
    assert len(subject.data.train) == 3 * 12  # half of what 0.2 of 30 images a class leave
    assert study(subject, samples=20).disagreement.overall.of == 20


def test_figures_are_the_same_with_a_store_and_without_and_nothing_is_added_to_a_runs_own(
    teacher: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(teacher, tmp_path / "run")
    before = sorted(run.rglob("*"))
    stored = study(open_subject(str(run), device="cpu"), samples=120)
    assert sorted(run.rglob("*")) == before
    shutil.rmtree(run / "answers.zarr")
    assert figures(study(open_subject(str(run), device="cpu"), samples=120)) == figures(stored)


def test_a_named_store_keeps_the_answers(teacher: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "kept.zarr")
    first = study(open_subject(str(teacher), store=place, device="cpu"), samples=90)
    kept = [name for name in AnswerStore(place).tables() if "cutmix-1" in name]
    assert len(kept) == 1
    subject = open_subject(str(teacher), store=place, device="cpu")
    views = subject.views("cutmix", seed=0)
    cached_teacher = subject.cached_teacher(views, epochs=1)
    for batch in views.epoch(0):
        cached_teacher.logits(batch, first=1)
    assert cached_teacher.pop_counts() == (0, 90)
    assert figures(study(subject, samples=90)) == figures(first)


def test_any_network_about_any_images(pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.manual_seed(2)
    torch.save(resnet18(num_classes=3).state_dict(), weights)
    asked = {"dataset": f"folder:{pictures}", "image_size": 32, "device": "cpu"}
    subject = open_subject("torchvision:resnet18", str(weights), split="val", **asked)  # type: ignore[arg-type]
    found = study(subject, samples=30)
    assert (found.split, found.clean_error.of) == ("val", 30)
    assert found.class_names == ("bright", "dark", "striped")
    with pytest.raises(UsageError, match="--dataset"):
        open_subject("torchvision:resnet18", str(weights))
