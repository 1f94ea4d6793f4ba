"""Label disagreement: a case worked out by hand, the interval, and a comparison with counting view by view."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from kdcache.stages import train_teacher
from torchvision.models import resnet18

from kdcache.analysis.disagreement import DisagreementReport, measure_disagreement
from kdcache.analysis.disagreement_counts import MixedSamples, count_disagreement
from kdcache.analysis.estimates import Proportion
from kdcache.analysis.inputs import AnalysisInputs, load_analysis_inputs
from kdcache.answers.store import AnswerStore
from kdcache.cli import cli
from kdcache.config import TeacherConfig
from kdcache.errors import UsageError
from kdcache.views import Batch
from tests.answers import stored


def by_hand() -> MixedSamples:
    """Six samples of seven classes. After its top-1 class, the teacher ranks the others from 6 downwards.

    ===  =====  =======  ======  ===========  ==========  =========  ============  ========
    row  label  partner  lambda  mixed label  prediction  disagrees  both correct  in top-5
    ===  =====  =======  ======  ===========  ==========  =========  ============  ========
    0    0      1        0.90    0            0           no         yes           yes
    1    0      1        0.25    1            0           yes        yes           no
    2    2      1        0.50    1 (tie)      1           no         no            yes
    3    2      4        0.50    2 (tie)      4           yes        no            yes
    4    2      2        0.10    2            6           yes        yes           yes
    5    1      1        1.00    1            1           no         yes           yes
    ===  =====  =======  ======  ===========  ==========  =========  ============  ========
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
        partners=np.arange(6),
        standard_keys=np.arange(6),
    )
    logits = 0.1 * torch.arange(7.0).expand(6, 7).clone()
    logits[torch.arange(6), torch.tensor([0, 0, 1, 4, 6, 1])] += 5
    return MixedSamples.of(batch, logits, torch.tensor([True, True, False, False, True, True]))


def test_the_case_worked_out_by_hand() -> None:
    # Top-5 of row 1: 0, 6, 5, 4, 3, without class 1. Of row 3: 4, 6, 5, 3, 2, with class 2. Of row 4: 6, 5, 4, 3, 2.
    found = count_disagreement(by_hand(), classes=7)
    shares = {name: (share.count, share.total) for name, share in vars(found).items() if isinstance(share, Proportion)}
    assert shares == {
        "overall": (3, 6),
        "different_classes": (2, 4),
        "same_class": (1, 2),
        "despite_both_images_correct": (2, 6),
        "given_both_images_correct": (2, 4),
        "one_of_two": (5, 6),
        "one_of_two_given_disagreement": (2, 3),
        "in_top5": (5, 6),
        "in_top5_given_disagreement": (2, 3),
    }
    bins = {round(10 * low): (share.count, share.total) for low, _, share in found.by_lambda}
    filled = {place: share for place, share in bins.items() if share != (0, 0)}
    assert filled == {1: (1, 1), 2: (1, 1), 5: (1, 2), 9: (0, 2)}
    by_class = [(share.count, share.total) for share in found.by_class]
    assert by_class == [(0, 1), (1, 3), (2, 2), *[(0, 0)] * 4]
    assert found.overall.percent == 50.0


def test_the_interval_is_wilsons() -> None:
    # Agresti and Coull's textbook case: 10 of 10 gives 72.2 to 100.
    low, high = Proportion(10, 10).interval or (0, 0)
    assert low == pytest.approx(72.2467, abs=1e-3)
    assert high == pytest.approx(100.0)
    assert Proportion(0, 0).interval is None


@pytest.mark.parametrize("share", [0.05, 0.521])
def test_the_interval_covers_the_truth_about_95_times_in_100(share: float) -> None:
    draws, n = 2000, 300
    counts = np.random.Generator(np.random.PCG64(3)).binomial(n, share, draws)
    covered = sum(
        low <= 100 * share <= high for low, high in (Proportion(int(k), n).interval or (0, 0) for k in counts)
    )
    assert covered / draws == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws) + 0.01)


def test_counts_do_not_depend_on_the_order_of_samples() -> None:
    samples = by_hand()
    rows = list(range(6))
    random.Random(1).shuffle(rows)
    shuffled = MixedSamples(*(tensor[rows] for tensor in vars(samples).values()))
    assert count_disagreement(shuffled, 7) == count_disagreement(samples, 7)


def figures(found: DisagreementReport) -> dict[str, object]:
    return found.as_json() | {"teacher": None}


def count_one_by_one(analyzed: AnalysisInputs, samples: int, aug: str, augs: list[str]) -> tuple[int, int]:
    """Count disagreement view by view: overall, and where both clean images are classified correctly."""
    views, disagreements, despite_both_images_correct, done = analyzed.views(aug, seed=4, augs=augs), 0, 0, 0
    labels, clean = analyzed.images.labels, analyzed.teacher(analyzed.images.images).argmax(1)
    for epoch in range(9):
        table = views.plan.epoch(epoch)
        slot = table.slots[0]
        answers = analyzed.teacher(views.views(epoch, 1, range(views.plan.samples)))
        for place in range(views.plan.samples):
            if done == samples:
                return disagreements, despite_both_images_correct
            pair = torch.from_numpy(table.order[[place, slot.partner[place]]])
            mixed = np.zeros(analyzed.data.num_classes)
            np.add.at(mixed, labels[pair].numpy(), [slot.lam[place], 1 - slot.lam[place]])
            differs = int(answers[place].half().argmax()) != int(mixed.argmax())
            disagreements += differs
            despite_both_images_correct += differs and bool((clean[pair] == labels[pair]).all())
            done += 1
    raise AssertionError


@pytest.mark.parametrize(
    ("aug", "augs", "name"),
    [
        ("cutmix", [], "cutmix"),
        ("mixup", [], "mixup"),
        ("cutmix", ["cutmix.mode=batch"], "cutmix,mode=batch32"),  # of the preset
        ("cutmix", ["cutmix.alpha=0.2", "cutmix.probability=0.5"], "cutmix,alpha=0.2,probability=0.5"),
    ],
)
def test_the_report_agrees_with_counting_one_by_one(aug: str, augs: list[str], name: str, teacher: Path) -> None:
    analyzed = load_analysis_inputs(str(teacher), device="cpu")
    found = measure_disagreement(analyzed, samples=200, seed=4, aug=aug, augs=augs)
    assert found.aug == name
    overall, right = found.counts.overall, found.counts.despite_both_images_correct
    assert (overall.count, overall.total) == (count_one_by_one(analyzed, 200, aug, augs)[0], 200)
    assert (right.count, right.total) == (count_one_by_one(analyzed, 200, aug, augs)[1], 200)
    assert 0 < overall.count < 200
    assert found.clean_error.total == 90
    surest = [example.teacher[0][1] for example in found.examples]
    assert surest == sorted(surest, reverse=True)
    assert len(surest) == min(12, overall.count)
    assert all(example.teacher[0][0] != example.label[0][0] for example in found.examples if len(example.label) > 1)


def test_a_teacher_trained_on_a_part_is_evaluated_on_that_part(small: dict[str, object], tmp_path: Path) -> None:
    part = {"train_fraction": 0.5, "val_fraction": 0.2, "out": tmp_path / "run"}
    run = train_teacher(TeacherConfig.load(**{**small, **part}))
    analyzed = load_analysis_inputs(str(run.path), device="cpu")
    assert len(analyzed.data.train) == 3 * 12  # half of the 24 images of each class that validation leaves
    assert measure_disagreement(analyzed, samples=20).counts.overall.total == 20


def test_results_do_not_depend_on_the_store_and_the_store_of_a_run_is_not_changed(
    teacher: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(teacher, tmp_path / "run")
    before = sorted(run.rglob("*"))
    expected = measure_disagreement(load_analysis_inputs(str(run), device="cpu"), samples=120)
    assert sorted(run.rglob("*")) == before
    shutil.rmtree(stored(run))
    assert figures(measure_disagreement(load_analysis_inputs(str(run), device="cpu"), samples=120)) == figures(expected)


def test_a_named_store_keeps_the_logits(teacher: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "kept.zarr")
    first = measure_disagreement(load_analysis_inputs(str(teacher), store=place, device="cpu"), samples=90)
    kept = [name for name in AnswerStore(place).table_paths() if "cutmix-1" in name]
    assert len(kept) == 1
    analyzed = load_analysis_inputs(str(teacher), store=place, device="cpu")
    views = analyzed.views("cutmix", seed=0)
    cached_teacher = analyzed.cached_teacher(views, epochs=1)
    for batch in views.epoch(0):
        cached_teacher.logits(batch, first=1)
    counts = cached_teacher.pop_counts()
    assert (counts.forwards, counts.requests) == (0, 90)
    assert figures(measure_disagreement(analyzed, samples=90)) == figures(first)


def test_logits_for_other_options_are_kept_and_used_under_their_own_names(teacher: Path, tmp_path: Path) -> None:
    place, half = str(tmp_path / "kept.zarr"), ["cutmix.alpha=0.5"]
    analyzed = load_analysis_inputs(str(teacher), store=place, device="cpu")
    reports = [measure_disagreement(analyzed, samples=90, augs=augs) for augs in (None, half)]
    kinds = {name.kind for name in AnswerStore(place).replay_tables()}
    assert kinds == {"cutmix-1", "cutmix,alpha=0.5-1"}
    assert reports[0].counts != reports[1].counts
    views = analyzed.views("cutmix", seed=0, augs=half)
    cached_teacher = analyzed.cached_teacher(views, epochs=1)
    for batch in views.epoch(0):
        logits = cached_teacher.logits(batch, first=1)
        assert logits.equal(analyzed.teacher(batch.mixed_views()).half().float())
    assert (cached_teacher.pop_counts().forwards, len(views.steps)) == (0, 1)


def test_the_command_takes_the_options_of_its_mix(teacher: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        place = ["--teacher", str(teacher), "--device", "cpu", "--samples", "60", "--out", str(tmp_path)]
        return CliRunner().invoke(cli, ["analyze", "disagreement", *place, *words])

    assert run("--aug-option", "cutmix.alpha=0.5").exit_code == 0
    assert json.loads((tmp_path / "disagreement.json").read_text())["aug"] == "cutmix,alpha=0.5"
    for words, problem in (
        (("--aug", "mixup", "--aug-option", "cutmix.alpha=0.5"), "Leave out cutmix.alpha, or add the augmentation"),
        (("--aug-option", "cutmix.alpha=0.7"), "--aug-option cutmix.alpha: expected one of 0.1, "),
    ):
        refused = run(*words).exception
        assert isinstance(refused, UsageError)
        assert problem in str(refused)


def test_an_external_network_on_any_images(pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.manual_seed(2)
    torch.save(resnet18(num_classes=3).state_dict(), weights)
    images = {"dataset": f"folder:{pictures}", "image_size": 32, "device": "cpu"}
    analyzed = load_analysis_inputs("torchvision:resnet18", str(weights), split="val", **images)  # type: ignore[arg-type]
    found = measure_disagreement(analyzed, samples=30)
    assert (found.split, found.clean_error.total) == ("val", 30)
    assert found.class_names == ("bright", "dark", "striped")
    with pytest.raises(UsageError, match="--dataset"):
        load_analysis_inputs("torchvision:resnet18", str(weights))
