"""What the authors' code does in another way: one box a batch, forwards of x and x' by themselves, and scoring."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kdcache.stages import train_student
from torch import Tensor, nn

from kdcache import distributed, models, stages
from kdcache.cards import card_of
from kdcache.cli import cli
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.extensions import trust
from kdcache.forwards import check_forwards
from kdcache.losses import cross_entropy, kd_loss
from kdcache.losses.features import at_loss
from kdcache.report.progress import Reporter
from kdcache.setup import make_plan_for_size
from kdcache.training import EpochProgress
from kdcache.views import Views, rank_part, steps
from kdcache.views.mixes import draw_rows
from kdcache.views.plan import MIX
from tests import answers
from tests.processes import outcome, run_ranks
from tests.test_augs import plan
from tests.test_step import SIZE, Bench, norm_state

CPU = torch.device("cpu")


def bare(num_classes: int) -> nn.Module:
    """A network without batch norm."""
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return nn.Sequential(*layers)


BARE = "python:tests.test_authors_code:bare"
trust(BARE)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "cutmix,alpha=0.2"])
@pytest.mark.parametrize(("samples", "size"), [(150, 64), (150, 32), (67, 64), (130, 7), (70, 500)])
def test_the_samples_of_a_batch_share_box_and_lambda(mix: str, samples: int, size: int) -> None:
    single, shared = (plan(text, samples=samples) for text in (mix, f"{mix},mode=batch{size}"))
    batches = steps(samples, size)
    words = single._stream(MIX, 2, 0).random_raw(2 * len(batches)).reshape(-1, 2)
    parameters, lam, _ = draw_rows(mix, words, 32)
    ours, other = shared.epoch(2), single.epoch(2)
    for number, batch in enumerate(batches):
        assert (ours.slots[0].parameters[batch] == parameters[number]).all()
        assert (ours.slots[0].lam[batch] == lam[number]).all()
    assert len(set(lam)) > len(batches) / 2
    # All else is as without the option.
    assert all(np.array_equal(getattr(ours, name), getattr(other, name)) for name in ("order", "crop", "flip"))
    for name in ("partner", "random_score"):
        assert np.array_equal(getattr(ours.slots[0], name), getattr(other.slots[0], name))


def test_a_batch_is_mixed_as_a_whole_or_not_at_all() -> None:
    drawn = plan("mixup,probability=0.5,mode=batch16", samples=150)
    mixed = []
    for epoch in range(4):
        (slot,) = drawn.epoch(epoch).slots
        alone = slot.partner == np.arange(150)
        for batch in steps(150, 16):
            assert alone[batch].all() or not alone[batch].any()
            assert not alone[batch].any() or (slot.lam[batch] == 1).all()
            mixed.append(not alone[batch.start])
    assert 5 < sum(mixed) < len(mixed) - 5


def test_the_slots_of_a_batch_have_boxes_of_their_own_and_every_step_is_a_batch(noise: Split) -> None:
    config = StudentConfig(aug="cutmix-pick", augs={"cutmix": {"mode": "batch"}}, batch_size=48)
    drawn = make_plan_for_size(config, len(noise), card_of("cifar100", None))
    lambdas = [batch.lam.view(2, -1) for batch in Views(noise, drawn, 48, CPU).epoch(0)]
    assert [len(lam.unique(dim=1).T) for lam in lambdas] == [1, 1, 1]
    assert len(torch.stack([lam[:, 0] for lam in lambdas]).unique()) == 6


def test_the_kind_of_view_states_the_batch_size() -> None:
    def kinds(**settings: Any) -> tuple[str, ...]:
        config = StudentConfig.load(dataset="cifar100", augs=["cutmix.mode=batch"], **settings)
        return make_plan_for_size(config, 500, card_of("cifar100", None)).kinds

    assert kinds(aug="cutmix-pick") == ("standard", "cutmix,mode=batch64-1", "cutmix,mode=batch64-2")
    assert kinds(aug="cutmix", batch_size=32) == ("standard", "cutmix,mode=batch32-1")
    assert StudentConfig.load(aug="cutmix", augs=["cutmix.mode=batch"]).views == "cutmix (cutmix,mode=batch)"
    with pytest.raises(UsageError, match="mode of a mix: expected elem or batchN"):
        plan("cutmix,mode=batch").epoch(0)


def test_commands_about_views_know_the_batch_size(tmp_path: Path) -> None:
    words = ["--dataset", "fashion-mini", "--aug", "cutmix", "--aug-option", "cutmix.mode=batch", "--batch-size", "16"]
    done = CliRunner().invoke(cli, ["views", *words, "--samples", "2", "--out", str(tmp_path / "views.png")])
    assert "cutmix,mode=batch16-1: partner" in done.output
    for command in ("fill", "plan"):
        assert "--batch-size" in CliRunner().invoke(cli, ["cache", command, "--help"]).output


def test_logits_are_reused_by_students_of_the_same_batch_size_only(noise: Split, tmp_path: Path) -> None:
    def forwards(mix: str, batch_size: int) -> int:
        maker = Views(noise, plan(mix), batch_size, CPU)
        cached = answers.cached_teacher(tmp_path / "store.zarr", noise, maker)
        answers.all_logits(cached, 1)
        return int(cached.pop_counts().as_metrics()["teacher_forwards"])

    assert forwards("cutmix,mode=batch32", 32) == 300
    assert forwards("cutmix,mode=batch32", 32) == 0
    assert forwards("cutmix,mode=batch50", 50) == 150  # x is stored
    assert forwards("cutmix", 32) == 150


def picked(bench: Bench) -> Tensor:
    """Rows of the views that the student was trained on besides x."""
    return SIZE + bench.statistics.picked[:, bench.batch.samples].flatten().nonzero()[:, 0]


def forwards_of(network: models.Network) -> set[int]:
    return {int(value) for key, value in norm_state(network).items() if "tracked" in key}


def assert_same_state(one: models.Network, other: models.Network) -> None:
    expected = norm_state(other)
    assert all(value.equal(expected[key]) for key, value in norm_state(one).items())


def assert_same_gradients(one: models.Network, other: models.Network) -> None:
    for own, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aug", ["cutmix", "cutmix-pick"])
@pytest.mark.parametrize("loss", ["kd", "at+kd"])
def test_separate_forwards_normalize_x_and_its_mixes_apart(loss: str, aug: str, noise: Split) -> None:
    bench = Bench(noise, aug=aug, loss=loss, separate_forwards=True)
    alone = copy.deepcopy(bench.student)
    found = bench.step(bench.batch).loss
    rows = (torch.arange(SIZE), picked(bench))
    assert len(rows[1]) == SIZE
    (x, maps), (mixed, _) = (alone.with_features(bench.batch.views[each]) for each in rows)
    of_x, of_mixed = (bench.logits(bench.teacher.eval(), each).half().float() for each in rows)
    expected = 0.1 * cross_entropy(x, bench.batch.labels) + 0.9 * (
        kd_loss(x, of_x, 4.0) + kd_loss(mixed, of_mixed, 4.0)
    )
    if loss == "at+kd":
        with torch.no_grad():
            teacher_maps = bench.teacher.features(bench.batch.views[:SIZE])
        expected = expected + 1000 * sum(map(at_loss, maps[1:-1], teacher_maps[1:-1]))
    expected.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    assert_same_gradients(bench.student, alone)
    assert_same_state(bench.student, alone)
    assert forwards_of(bench.student) == {2}


def test_separate_forwards_change_nothing_but_batch_norm(noise: Split) -> None:
    build = partial(models.build, BARE, num_classes=4)
    one, two = (Bench(noise, build=build, aug="cutmix-pick", separate_forwards=separate) for separate in (False, True))
    torch.testing.assert_close(two.step(two.batch).loss, one.step(one.batch).loss)
    assert_same_gradients(two.student, one.student)


def test_scoring_updates_running_statistics_if_asked_to(noise: Split) -> None:
    bench, default = Bench(noise, aug="cutmix-pick", scoring_updates_stats=True), Bench(noise, aug="cutmix-pick")
    alone = copy.deepcopy(bench.student)
    assert bench.step(bench.batch) == default.step(default.batch)
    assert picked(bench).equal(picked(default))
    assert_same_gradients(bench.student, default.student)
    with torch.no_grad():
        alone(bench.batch.views[SIZE:])
        alone(bench.batch.views[torch.cat([torch.arange(SIZE), picked(bench)])])
    assert_same_state(bench.student, alone)
    assert (forwards_of(bench.student), forwards_of(default.student)) == ({2}, {1})


def test_all_three_together(noise: Split) -> None:
    settings = {"separate_forwards": True, "scoring_updates_stats": True, "augs": {"cutmix": {"mode": "batch32"}}}
    bench = Bench(noise, aug="cutmix-pick", **settings)
    alone = copy.deepcopy(bench.student)
    bench.step(bench.batch)
    with torch.no_grad():
        for rows in (torch.arange(SIZE, 3 * SIZE), torch.arange(SIZE), picked(bench)):
            alone(bench.batch.views[rows])
    assert_same_state(bench.student, alone)
    assert len(bench.batch.lam.unique()) == 2


def distributed_step(data: Split) -> dict[str, Any]:
    """A step in this process."""
    bench = Bench(data, aug="cutmix", augs={"cutmix": {"mode": "batch32"}}, separate_forwards=True)
    bench.step(bench.batch)
    gradients = [parameter.grad for parameter in bench.student.parameters()]
    return {"gradients": gradients, "state": norm_state(bench.student), "lam": bench.batch.lam}


def test_two_processes_share_the_box_and_each_normalizes_its_parts(noise: Split) -> None:
    ranks = run_ranks(2, distributed_step, noise)
    bench = Bench(noise, aug="cutmix", augs={"cutmix": {"mode": "batch32"}}, separate_forwards=True)
    bench.step(bench.batch)
    assert torch.cat([rank["lam"] for rank in ranks]).equal(bench.batch.lam)
    networks, total = [], torch.zeros(())
    for rank in range(2):
        network = models.build("resnet8", num_classes=4, seed=0)
        own = torch.arange(SIZE)[rank_part(range(SIZE), rank, 2)]
        x, mixed = (network(bench.batch.views[rows]) for rows in (own, SIZE + own))
        of_x, of_mixed = (bench.logits(bench.teacher.eval(), rows).half().float() for rows in (own, SIZE + own))
        loss = 0.1 * cross_entropy(x, bench.batch.labels[own])
        total = total + loss + 0.9 * (kd_loss(x, of_x, 4.0) + kd_loss(mixed, of_mixed, 4.0))
        networks.append(network)
    (total / 2).backward()
    parts = zip(*(network.parameters() for network in networks), strict=True)
    expected = [sum(parameter.grad for parameter in both) for both in parts]  # type: ignore[misc]
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], expected, rtol=1e-4, atol=1e-5)
    assert all(value.equal(norm_state(networks[0])[key]) for key, value in ranks[0]["state"].items())


class Stopping(Reporter):
    """Stops a training in its second epoch."""

    def step(self, event: EpochProgress) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2:
            raise KeyboardInterrupt


def test_a_run_is_resumed_to_the_bit_and_the_next_student_makes_no_forward(
    small: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "epochs": 2, "teacher": teacher, "recipe": "good-da-in-kd", "store": str(tmp_path / "store")}
    config = StudentConfig.load(**settings, out=tmp_path / "broken", resume=True)
    with pytest.raises(KeyboardInterrupt):
        train_student(config, Stopping())
    assert not (config.out / "summary.json").exists()  # type: ignore[operator]
    for name in ("separate_forwards", "scoring_updates_stats"):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: expected True, as in the run, got False"):
            train_student(StudentConfig.load(**settings, **{name: False}, out=config.out, resume=True))
    resumed = train_student(config)
    whole = train_student(StudentConfig.load(**{**settings, "cache": "off"}, out=tmp_path / "whole"))
    assert outcome(resumed.path) == outcome(whole.path)
    assert whole.summary["teacher_forwards"] == 2 * 3 * 90
    second = train_student(StudentConfig.load(**settings, loss="dist", out=tmp_path / "second"))
    assert (second.summary["teacher_forwards"], second.summary["cache_hits"]) == (0, 2 * 3 * 90)


def test_the_recipe_turns_on_all_three_and_options_turn_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StudentConfig.load(recipe="good-da-in-kd")
    assert (config.aug, config.separate_forwards, config.scoring_updates_stats) == ("cutmix-pick", True, True)
    assert config.augmentation.mixes == ("cutmix,mode=batch",) * 2
    seen: list[StudentConfig] = []
    monkeypatch.setattr(stages, "train_student", lambda config, reporter: seen.append(config))
    switches = ["--no-separate-forwards", "--no-scoring-updates-stats", "--aug-option", "cutmix.mode=elem"]
    CliRunner().invoke(cli, ["student-train", "--recipe", "good-da-in-kd", *switches])
    CliRunner().invoke(cli, ["student-train", "--aug", "cutmix", "--separate-forwards"])
    assert seen[0] == StudentConfig.load(aug="cutmix-pick")
    assert seen[1] == StudentConfig.load(aug="cutmix", separate_forwards=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"separate_forwards": True}, "--separate-forwards: expected false with --aug standard, which makes no x'"),
        (
            {"separate_forwards": True, "aug": "cutmix", "loss": "ce"},
            "--separate-forwards: expected false with --loss ce, which is trained on x' alone",
        ),
        *(
            (
                {"scoring_updates_stats": True, **views},
                r"--scoring-updates-stats: expected false without a criterion that reads the student \(kld, student-e",
            )
            for views in ({}, {"aug": "cutmix"}, {"aug": "cutmix", "pick": "random"})
        ),
        ({"recipe": "good-da-in-kd", "aug": "cutmix"}, "good-da-in-kd: scoring_updates_stats: .*--no-scoring-updates"),
    ],
)
def test_switches_without_effect_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        StudentConfig.load(**settings)


@pytest.mark.parametrize("switch", ["separate_forwards", "scoring_updates_stats"])
def test_networks_without_batch_norm_are_refused(
    switch: str, small: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "model": BARE, "teacher": teacher, "aug": "cutmix-pick", switch: True, "cache": "off"}
    with pytest.raises(UsageError, match=f"--{switch.replace('_', '-')}: expected a network with batch norm, got py"):
        train_student(StudentConfig.load(**settings, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_process_may_not_be_left_with_one_pick_to_normalize(monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.build("resnet8", num_classes=4, seed=0)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def check(**settings: Any) -> None:
        check_forwards(StudentConfig.load(separate_forwards=True, **settings), network)

    with pytest.raises(UsageError, match="--pick-scope under torchrun, with --separate-forwards: expected rank"):
        check(aug="cutmix-pick")
    check(aug="cutmix-pick", pick_scope="rank")
    check(aug="cutmix-pick", sync_batchnorm=True)
    check(aug="cutmix")
