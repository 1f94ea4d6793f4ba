"""Augmentations and their options: names of kinds, draws, and that nothing else is read or changed."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kdcache.analysis.groups import group_runs
from kdcache.answers.store import ReplayTableName
from kdcache.cards import card_of
from kdcache.choices import MIXES
from kdcache.cli import cli
from kdcache.config import StudentConfig
from kdcache.config.augs import BETA_SHAPES, AugOptions, format_mix, parse_mix, with_mean_color
from kdcache.config.options import Options
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.run.records import RunRecord
from kdcache.setup import make_plan_for_size
from kdcache.views import ViewPlan, Views
from kdcache.views.mixes import find_mix
from kdcache.views.plan import format_kind, parse_kind
from tests import answers

CPU = torch.device("cpu")

CHANGED = {
    "mixup": {"alpha": 0.2, "probability": 0.5, "mode": "batch64"},
    "cutmix": {"alpha": 0.2, "probability": 0.5, "mode": "batch64"},
    "cutout": {"side": 0.25, "fill": "7d7b70"},
    "erasing": {"probability": 1.0, "fill": "7d7b70"},
    "autoaugment": {"policy": "imagenet"},
    "randaugment": {"number": 3, "magnitude": 15},
}
"""Another value of every option."""


def options_of(name: str, given: dict[str, Any]) -> Options | None:
    return AugOptions.model_validate({name: given}).of(name)


def plan(*mixes: str, samples: int = 150, seed: int = 0) -> ViewPlan:
    return ViewPlan(samples, 32, 4, crop_flip=True, seed=seed, mixes=mixes)


def changed_alone() -> Iterator[str]:
    """Every option of every mix, changed alone."""
    for name, options in CHANGED.items():
        yield from (format_mix(name, options_of(name, {option: value})) for option, value in options.items())


def test_every_option_is_listed_above() -> None:
    assert {name: tuple(options) for name, options in CHANGED.items()} == AugOptions.names()
    assert CHANGED.keys() <= MIXES.keys()


ANY_OPTIONS = st.sampled_from(sorted(CHANGED)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.fixed_dictionaries(
            {},
            optional={
                "alpha": st.sampled_from(BETA_SHAPES),
                "probability": st.floats(0.01, 1),
                "mode": st.sampled_from(["elem", "batch"]) | st.integers(1, 10**6).map("batch{}".format),
                "side": st.floats(0.0625, 1),
                "fill": st.sampled_from(["black", "mean"]) | st.binary(min_size=3, max_size=3).map(bytes.hex),
                "policy": st.sampled_from(["auto", "cifar10", "imagenet"]),
                "number": st.integers(1, 8),
                "magnitude": st.integers(1, 30),
            },
        ).map(lambda options: {key: value for key, value in options.items() if key in CHANGED[name]}),
    )
)


@given(first=ANY_OPTIONS, second=ANY_OPTIONS, slot=st.integers(1, 63))
def test_a_kind_names_all_options_and_can_be_parsed(
    first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]], slot: int
) -> None:
    complete = {}
    for name, options in (first, second):
        text = format_mix(name, options_of(name, options))
        found, parsed = parse_mix(text)
        assert found == name
        assert parsed is not None
        assert format_mix(found, parsed) == text
        values = parsed.model_dump()
        assert parse_kind(format_kind(text, slot)) == (text, slot)
        table = ReplayTableName(3, 7, format_kind(text, slot))
        assert ReplayTableName.parse(table.path) == table
        complete[text] = (found, tuple(values.items()))
        assert all(values[key] == value or (key, value) == ("fill", "000000") for key, value in options.items())
    # Equal names exactly for equal options.
    assert len(complete) == len(set(complete.values()))


def test_a_kind_with_the_defaults_is_the_name_alone() -> None:
    defaults = AugOptions().completed(tuple(MIXES))
    for name in MIXES:
        assert format_mix(name, defaults.of(name)) == name
    given = options_of("cutmix", {"probability": "0.50", "alpha": 0.2})
    assert format_mix("cutmix", given) == "cutmix,alpha=0.2,probability=0.5"


@pytest.mark.parametrize(
    "text",
    [
        *("", "cutmux", "cutmix,", "cutmix,alpha", "cutmix,alpha=1", "cutmix,alpha=0.20", "cutmix,alpha=0.7"),
        *("cutmix,side=0.5", "cutmix,probability=0.5,alpha=0.2", "trivialaugment,number=2", "cutout,fill=000000"),
        *("cutmix,alpha=0.2,alpha=0.2", "cutmix,alpha=0.2-1", "cutout,fill=7D7B70", "randaugment,number=2.5"),
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_mix(text)
    with pytest.raises(UsageError, match="augmentation: expected one of mixup, cutmix"):
        find_mix(text)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("cutmix", {"alpha": value}) for value in (0, 0.7, "nan", "inf", True, "x")),
        *(("mixup", {"probability": value}) for value in (0, 0.001, 1.01, "nan", True)),
        *(("mixup", {"mode": value}) for value in ("pair", "batch0", "batch064", "batch-64", "batch٣", 64, True)),
        *(("cutout", {"side": value}) for value in (0, 0.06, 1.1, "nan")),
        *(("cutout", {"fill": value}) for value in ("white", "#7d7b70", 123456, "7d7b7", "7d7b700")),
        *(("randaugment", {"number": value}) for value in (0, 9, 1.5, True)),
        *(("randaugment", {"magnitude": value}) for value in (0, 31)),
        ("autoaugment", {"policy": "svhn"}),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugOptions.model_validate({name: options})


def test_the_mean_color_is_part_of_the_name() -> None:
    mean = (0.5071, 0.4867, 0.4408)
    assert with_mean_color("cutout,side=0.25,fill=mean", mean) == "cutout,side=0.25,fill=817c70"
    assert with_mean_color("cutout,fill=mean", (0.0, 0.0, 0.0)) == "cutout"
    assert with_mean_color("cutmix", mean) == "cutmix"
    with pytest.raises(ValueError, match="hex"):
        find_mix("cutout,fill=mean")


def test_answers_to_other_options_are_no_cache_hits(noise: Split, tmp_path: Path) -> None:
    def counts(mix: str) -> dict[str, int]:
        cached = answers.cached_teacher(tmp_path / "store.zarr", noise, Views(noise, plan(mix), 64, CPU))
        answers.all_logits(cached, 1)
        return cached.pop_counts().as_metrics()

    assert counts("cutmix") == {"teacher_forwards": 300, "cache_hits": 0}
    for mix in CHANGED.keys() - {"cutmix"}:
        assert counts(mix) == {"teacher_forwards": 150, "cache_hits": 150}  # x is stored
    for mix in changed_alone():
        assert counts(mix) == {"teacher_forwards": 150, "cache_hits": 150}
        assert counts(mix) == {"teacher_forwards": 0, "cache_hits": 300}


def test_another_option_makes_other_views(noise: Split) -> None:
    def views(mix: str) -> Tensor:
        return Views(noise, plan(mix), 64, CPU).views(0, 1, range(150))

    for mix in changed_alone():
        assert not views(mix).equal(views(parse_mix(mix)[0]))


def test_options_come_from_files_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[student]\naug = 'cutmix+cutout'\n[student.augs.cutmix]\nalpha = 0.2\nprobability = 0.5\n")
    config = StudentConfig.load(file, augs=["cutmix.alpha=4", "cutout.side=0.25"])
    assert config.augmentation.mixes == ("cutmix,alpha=4,probability=0.5", "cutout,side=0.25")
    picked = StudentConfig.load(aug="cutmix-pick", augs={"cutmix": {"alpha": 0.5}})
    assert picked.augmentation.mixes == ("cutmix,alpha=0.5",) * 2
    words = ["--dataset", "fashion-mini", "--aug", "randaugment", "--aug-option", "randaugment.number=3"]
    done = CliRunner().invoke(cli, ["views", *words, "--samples", "2", "--out", str(tmp_path / "views.png")])
    assert "randaugment,number=3-1: partner" in done.output


def test_options_are_checked_with_all_other_settings() -> None:
    wrong = ("cutmix.alpha=0.7", "cutmix.probability=0", "cutmix.beta=1", "cutout.side=2", "cutout.fill=white", "x.y=1")
    words = [word for text in wrong for word in ("--aug-option", text)]
    done = CliRunner().invoke(cli, ["student-train", "--aug", "cutmix+cutout", "--lr", "0", *words])
    assert isinstance(done.exception, UsageError)
    assert list(done.exception.problems) == [
        "--lr: expected greater than 0, got 0",
        "--aug-option cutmix.alpha: expected one of 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1, 2, 4, got 0.7",
        "--aug-option cutmix.probability: expected greater than or equal to 0.01, got 0",
        "--aug-option cutmix.beta: no such setting",
        "--aug-option cutout.side: expected less than or equal to 1, got 2",
        "--aug-option cutout.fill: expected black, mean, or a color RRGGBB in hexadecimal, got white",
        "--aug-option x: no such setting",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"augs": ["cutmix.alpha=0.2"]}, r"--aug-option: expected options of augmentations in --aug.* cutmix.alpha"),
        ({"aug": "mixup", "augs": ["cutmix.alpha=0.2"]}, "Leave out cutmix.alpha, or add the augmentation"),
        ({"aug": "mixup", "augs": ["alpha=0.2"]}, "expected AUG.NAME=VALUE, such as cutmix.alpha=0.2, got"),
        ({"aug": "mixup", "augs": 3}, "expected AUG.NAME=VALUE"),
        ({"aug": "trivialaugment", "augs": {"trivialaugment": {"number": 2}}}, "trivialaugment: no such setting"),
        ({"aug": "mixup", "augs": {"mixup": {"alpha": True}}}, "mixup.alpha: expected a value other than true and"),
    ],
)
def test_options_that_nothing_reads_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        StudentConfig.load(**settings)


def test_options_are_recorded_and_must_be_equal_to_resume() -> None:
    config = StudentConfig.load(aug="cutmix+trivialaugment", augs=["cutmix.alpha=0.2"])
    recorded = tomllib.loads(config.to_toml())["student"]
    assert recorded["augs"] == {"cutmix": {"alpha": 0.2, "probability": 1.0, "mode": "elem"}}
    assert StudentConfig(**recorded).augs == config.augs
    (difference,) = StudentConfig.load(aug="cutmix+trivialaugment").differences(config)
    expected = "cutmix.alpha=0.2, cutmix.probability=1.0, cutmix.mode=elem, as in the run"
    got = "cutmix.alpha=1.0, cutmix.probability=1.0, cutmix.mode=elem"
    assert difference == f"--aug-option: expected {expected}, got {got}"


def test_the_plan_has_the_mean_color_of_the_dataset() -> None:
    config = StudentConfig.load(dataset="cifar100", aug="cutout+cutmix", augs=["cutout.fill=mean", "cutout.side=0.25"])
    drawn = make_plan_for_size(config, 500, card_of("cifar100", None))
    assert drawn.kinds == ("standard", "cutout,side=0.25,fill=817c70-1", "cutmix-2")


def test_reports_tell_runs_of_other_options_apart() -> None:
    configs = [
        StudentConfig.load(aug="cutmix-pick", augs=augs, loss=loss, losses=losses)
        for augs, loss, losses in (
            (None, "kd", None),
            (["cutmix.alpha=0.2"], "kd", None),
            (None, "kd+dkd", None),
            (None, "kd+dkd", ["dkd.beta=2"]),
        )
    ]
    assert [config.views for config in configs[:2]] == ["cutmix-pick", "cutmix-pick (cutmix,alpha=0.2)"]
    groups = group_runs(
        [RunRecord(Path(str(number)), config, (), None, {}, ()) for number, config in enumerate(configs)]
    )
    assert [group.name for group in groups] == [
        "resnet8 kd cutmix-pick, cutmix.alpha 1.0",
        "resnet8 kd cutmix-pick, cutmix.alpha 0.2",
        "resnet8 kd+dkd cutmix-pick, dkd.beta 8.0",
        "resnet8 kd+dkd cutmix-pick, dkd.beta 2.0",
    ]
