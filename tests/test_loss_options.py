"""Options and recipes of losses: where they come from, what is refused, what is recorded, and warm-up."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kdcache.stages import train_student
from torch import Tensor

from kdcache.checked_files import write_toml
from kdcache.choices import LOSSES
from kdcache.cli import cli
from kdcache.config import StudentConfig
from kdcache.config.losses import LossOptions
from kdcache.datasets import Split
from kdcache.errors import UsageError
from kdcache.losses import (
    LossContext,
    ViewOutputs,
    build_losses,
    dkd_loss,
    kd_loss,
    nkd_loss,
    ofa_loss,
    rld_loss,
    standardize,
)
from kdcache.run.folder import RunFolder
from tests.reference import tensor
from tests.test_step import Bench

ROOT = Path(__file__).parents[1]
RECIPES = tomllib.loads((ROOT / "configs" / "recipes" / "published.toml").read_text("utf-8"))

PUBLISHED_WEIGHTS = {
    **{"ce": 1, "kd": 1, "dkd": 1, "dist": 2, "nkd": 1, "rld": 1, "ofa": 1, "ttm": 45, "wttm": 4, "ctkd": 0.9},
    **{"mlkd": 1, "mlkd-one-view": 0.9, "crld": 1, "crd": 0.8, "sp": 3000, "at": 1000, "fitnet": 100, "rkd": 1},
    **{"pkt": 30000, "cc": 0.02, "vid": 1, "nst": 50},
}
PUBLISHED_OPTIONS: dict[str, dict[str, Any]] = {
    "kd": {"standardize": False},
    "dkd": {
        **{"alpha": 1, "beta": 8, "temperature": 4, "standardize": False, "target": "teacher"},
        "warm_up": 20,
    },
    "dist": {"beta": 1, "gamma": 1, "temperature": 4},
    "nkd": {"gamma": 1.5, "temperature": 1, "target": "teacher"},
    "rld": {
        **{"alpha": 1, "beta": 8, "temperature": 4, "confidence_temperature": 1, "standardize": False},
        "warm_up": 20,
    },
    "ofa": {"exponent": 1, "temperature": 1, "target": "teacher"},
    "ttm": {"exponent": 0.1},
    "wttm": {"exponent": 0.2},
    "ctkd": {"lowest_temperature": 1, "temperature_range": 20, "ramp": 10},
    "mlkd": {"temperature": 4, "standardize": False, "kd_weight": 0.9, "ce_weight": 0.1},
    "mlkd-one-view": {"temperature": 4, "standardize": False},
    "crld": {
        **{"ce_weight": 1, "within_weight": 2, "cross_weight": 0.5, "temperature": 4},
        **{"weak_threshold": 0.9, "strong_threshold": 0.2},
    },
}


def test_weights_and_options_are_the_published_ones() -> None:
    assert {name: LOSSES[name].weight for name in PUBLISHED_WEIGHTS} == PUBLISHED_WEIGHTS
    others = {name: LOSSES[name].cross_entropy for name in PUBLISHED_WEIGHTS if LOSSES[name].cross_entropy != 1}
    assert others == {"ctkd": 0.1, "mlkd-one-view": 0.1, "mlkd": 0, "crld": 0}
    config = StudentConfig(epochs=240, loss="+".join(PUBLISHED_OPTIONS), aug="cutout")
    assert config.model_dump(exclude_none=True)["losses"] == PUBLISHED_OPTIONS


def test_every_loss_and_option_is_on_its_page() -> None:
    page = (ROOT / "docs" / "losses.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert rows.keys() - {"--loss"} == LOSSES.keys()
    assert LossOptions.names().keys() <= LOSSES.keys()
    options = StudentConfig(loss="+".join(LossOptions.names()), aug="cutout").model_dump(exclude_none=True)["losses"]
    for loss, defaults in options.items():
        for name, value in defaults.items():
            default = "" if name == "warm_up" else f" {str(value).replace('False', 'false')}"
            assert f"`{name}`{default}" in rows[loss], (loss, name)


# What a recipe changes: the sum with its weights, and the options that differ from the defaults.
CHANGES: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "crd-kd": ({"ce": 1, "kd": 1, "crd": 0.8}, {}),
    "kd-standardized": ({"ce": 0.1, "kd": 9}, {"standardize": True}),
    "kd-standardized-imagenet": ({"ce": 1, "kd": 9}, {"standardize": True}),
    "dkd-standardized": ({"ce": 1, "dkd": 9}, {"temperature": 2, "standardize": True}),
    "mlkd-standardized": ({"mlkd": 1}, {"temperature": 2, "kd_weight": 9, "standardize": True}),
    "dkd-resnet": ({"ce": 1, "dkd": 1}, {"beta": 2}),
    "dkd-vgg-wrn": ({"ce": 1, "dkd": 1}, {"beta": 6}),
    "dkd-imagenet": ({"ce": 1, "dkd": 1}, {"beta": 0.5, "temperature": 1, "warm_up": 1}),
    "dkd-imagenet-mobilenet": ({"ce": 1, "dkd": 1}, {"beta": 2, "temperature": 1, "warm_up": 1}),
    "dist-imagenet": ({"ce": 1, "dist": 2}, {"temperature": 1}),
    "nkd-cifar100": ({"ce": 1, "nkd": 1}, {"gamma": 3.5, "temperature": 3}),
    "nkd-deit": ({"ce": 1, "nkd": 1}, {"gamma": 1}),
    "rld-same-temperature": ({"ce": 1, "rld": 1}, {"confidence_temperature": 4}),
    "rld-imagenet": ({"ce": 1, "rld": 1}, {"beta": 0.5, "temperature": 1, "warm_up": 1}),
    "rld-imagenet-mobilenet": ({"ce": 1, "rld": 1}, {"beta": 2, "temperature": 1, "warm_up": 1}),
    "rld-standardized": (
        {"ce": 1, "rld": 9},
        {"temperature": 2, "confidence_temperature": 2, "standardize": True},
    ),
    "mlkd-imagenet": ({"mlkd": 1}, {"temperature": 1, "kd_weight": 0.5, "ce_weight": 0.5}),
    "crld-imagenet": ({"crld": 1}, {"temperature": 1, "ce_weight": 2}),
    "crld-tiny-imagenet": ({"crld": 1}, {"temperature": 2, "within_weight": 4, "cross_weight": 1}),
    "ofa-imagenet": ({"ce": 1, "ofa": 1}, {"exponent": 1.5}),
}


def test_every_recipe_sets_either_losses_or_views() -> None:
    assert {name for name in RECIPES if "loss" not in RECIPES[name]} == {"good-da-in-kd"}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "loss" in RECIPES[name]])
def test_recipes_have_the_published_constants(recipe: str) -> None:
    config = StudentConfig.load("cifar100", recipe=recipe, aug="cutout")
    weights, options = CHANGES[recipe]
    assert config.loss_weights == weights
    assert config.temperature == (2.0 if recipe.startswith("kd-") else 4.0)
    loss = recipe.partition("-")[0].replace("crd", "kd")
    assert config.model_dump()["losses"][loss] == PUBLISHED_OPTIONS[loss] | options


def test_options_override_recipes_and_recipes_override_presets(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text("[student]\ntemperature = 3.0\nloss = 'dkd'\n[student.losses.dkd]\nalpha = 0.5\nbeta = 7.0\n")
    assert StudentConfig.load(preset).losses.dkd.beta == 7  # type: ignore[union-attr]
    own = tmp_path / "own.toml"
    own.write_text("loss = 'dkd+kd'\nlosses.dkd = { beta = 3.0, target = 'label' }\n")
    config = StudentConfig.load(preset, recipe=own, losses={"dkd": {"target": "teacher"}})
    assert config.losses.dkd is not None
    assert (config.losses.dkd.alpha, config.losses.dkd.beta, config.losses.dkd.target) == (0.5, 3.0, "teacher")
    assert config.temperature == 3
    assert config.loss == "dkd+kd"


def run_cli(tmp_path: Path, *words: str) -> tuple[int, list[str]]:
    found = CliRunner().invoke(cli, ["student-train", "--data-root", str(tmp_path), *words])
    assert isinstance(found.exception, SystemExit | UsageError)
    return found.exit_code, str(found.exception).splitlines()


def test_options_of_the_command_line_are_checked_with_all_other_settings(tmp_path: Path) -> None:
    wrong = ("dkd.beta=-1", "dkd.gamma=1", "dkd.standardize=perhaps", "mse.a=1")
    words = [word for text in wrong for word in ("--loss-option", text)]
    _, problems = run_cli(tmp_path, "--loss", "dkd", "--epochs", "0", *words)
    assert problems == [
        "--epochs: expected greater than or equal to 1, got 0",
        "--loss-option dkd.beta: expected greater than or equal to 0, got -1",
        "--loss-option dkd.standardize: expected a valid boolean, got perhaps",
        "--loss-option dkd.gamma: no such setting",
        "--loss-option mse: no such setting",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"losses": {"dkd": {"beta": 6}}}, r"--loss-option: expected options of losses in --loss.* Leave out dkd.beta"),
        ({"loss": "crd", "losses": {"dkd": {}}}, r"Leave out dkd, or add the loss"),
        ({"losses": ("beta=6",)}, r"--loss-option: expected LOSS.NAME=VALUE, such as dkd.beta=6, got beta=6"),
        ({"losses": 3}, r"--loss-option: expected LOSS.NAME=VALUE"),
        ({"recipe": "dkd-mnist"}, r"--recipe: expected a TOML file or one of crd-kd, .*, got dkd-mnist"),
        ({"recipe": "dkd-imagenet", "loss": "kd"}, r"losses: .*Leave out dkd.beta, dkd.temperature, dkd.warm_up"),
    ],
)
def test_options_that_nothing_reads_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        StudentConfig.load(**settings)


def test_problems_of_files_are_named_by_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("loss = 'dkd'\nlr = 3\nlosses.dkd = { beta = 'x' }\n")
    with pytest.raises(UsageError) as caught:
        StudentConfig.load(recipe=file)
    assert caught.value.problems == (
        f"{file}: unknown key lr: expected one of loss, temperature, alpha, losses, aug, augs, separate_forwards, "
        "scoring_updates_stats",
        f"{file}: losses.dkd.beta: expected a valid number, got x",
    )


def test_options_are_recorded_and_must_be_equal_to_resume() -> None:
    config = StudentConfig.load(loss="dkd+kd+crd", losses=["dkd.beta=6"], epochs=24)
    text = config.to_toml()
    assert tomllib.loads(text)["student"]["losses"] == {
        "kd": {"standardize": False},
        "dkd": {**PUBLISHED_OPTIONS["dkd"], "beta": 6.0, "warm_up": 2.0},
    }
    assert "[student.losses.dkd]\nalpha = 1.0\nbeta = 6.0\n" in text
    other = config.model_copy(update={"losses": LossOptions.model_validate({"dkd": {"beta": 2}})})
    (difference,) = other.differences(config)
    assert difference.startswith("--loss-option: expected kd.standardize=False, dkd.alpha=1.0, dkd.beta=6.0, ")


def test_the_warm_up_is_kept_when_a_run_is_resumed_with_more_epochs(
    small: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "teacher": teacher, "out": tmp_path / "run", "cache": "off", "loss": "rld"}
    started = StudentConfig.load(**{**settings, "epochs": 48})
    RunFolder(tmp_path / "run").path.mkdir()
    write_toml(RunFolder(tmp_path / "run").config_file, started.to_toml())
    resumed = StudentConfig.load(**{**settings, "epochs": 96}, resume=True)
    assert resumed.losses == started.losses
    assert resumed.losses.rld is not None
    assert resumed.losses.rld.warm_up == 4
    assert resumed.differences(started) == []


def test_a_loss_counts_by_the_part_of_its_warm_up_and_is_recorded_whole(noise: Split) -> None:
    whole = Bench(noise, loss="dkd", losses={"dkd": {"warm_up": 0}})
    warming = Bench(noise, loss="dkd", losses={"dkd": {"warm_up": 4}})
    for epoch in (0, 1, 3, 5):
        batch = replace(whole.batch, epoch=epoch)
        loss, part = whole.step(batch).loss, warming.step(batch).loss
        torch.testing.assert_close(whole.statistics.losses, warming.statistics.losses, equal_nan=True)
        ce, dkd = whole.statistics.losses[batch.step]
        torch.testing.assert_close(loss, ce + dkd)
        torch.testing.assert_close(part, ce + min((epoch + 1) / 4, 1) * dkd)


@pytest.mark.parametrize(("epochs", "warm_up"), [(240, 20), (960, 20), (24, 2), (1, 1 / 12)])
def test_the_warm_up_takes_a_twelfth_of_the_epochs_but_at_most_twenty(epochs: int, warm_up: float) -> None:
    config = StudentConfig(epochs=epochs, loss="dkd+rld", losses={"rld": {"warm_up": 3}})
    assert config.losses.dkd is not None
    assert config.losses.rld is not None
    assert (config.losses.dkd.warm_up, config.losses.rld.warm_up) == (pytest.approx(warm_up), 3)


STUDENT, TEACHER = tensor(0, (8, 100), 6), tensor(1, (8, 100), 8)
LABELS, PARTNERS = torch.arange(8), torch.arange(8) + 10
LAM = torch.tensor([0.9, 0.1, 0.5, 0.6, 0.4, 1.0, 0.0, 0.51])
LARGER = torch.tensor([0, 11, 2, 3, 14, 5, 16, 7])  # of a tie, the lower class

X = ViewOutputs(STUDENT, TEACHER, None, LABELS, LABELS)
MIXED = ViewOutputs(STUDENT, TEACHER, None, LABELS, LABELS, partner_labels=PARTNERS, lam=LAM)


def value(name: str, views: ViewOutputs, **options: Any) -> Tensor:
    given = LossOptions.model_validate({name: options})
    (loss,) = build_losses([name], LossContext((), (), LABELS, 4.0, 0, given)).values()
    found: Tensor = loss(views)
    return found


TARGET_CLASS_LOSSES = {
    "dkd": lambda labels: dkd_loss(STUDENT, TEACHER, labels, 4.0),
    "nkd": lambda labels: nkd_loss(STUDENT, TEACHER, labels),
    "ofa": lambda labels: ofa_loss(STUDENT, TEACHER, labels),
}


@pytest.mark.parametrize("name", TARGET_CLASS_LOSSES)
def test_the_target_class_of_a_mixed_view_is_the_teachers_or_the_larger_part(name: str) -> None:
    loss = TARGET_CLASS_LOSSES[name]
    assert value(name, X).equal(loss(LABELS))
    assert value(name, X, target="label").equal(loss(LABELS))
    assert value(name, MIXED).equal(loss(TEACHER.argmax(1)))
    assert value(name, MIXED, target="label").equal(loss(LARGER))


def test_the_refined_loss_takes_the_larger_part_of_a_mixed_label() -> None:
    assert value("rld", X).equal(rld_loss(STUDENT, TEACHER, LABELS))
    assert value("rld", MIXED).equal(rld_loss(STUDENT, TEACHER, LARGER))


def test_standardized_logits_are_those_that_a_loss_compares() -> None:
    logits = standardize(STUDENT), standardize(TEACHER)
    assert value("dkd", X, standardize=True).equal(dkd_loss(*logits, LABELS, 4.0))
    assert value("rld", X, standardize=True).equal(rld_loss(*logits, LABELS))
    kl = torch.zeros(8)  # which the step computes from the logits as they are
    assert value("kd", ViewOutputs(STUDENT, TEACHER, kl, LABELS, LABELS), standardize=True).equal(kd_loss(*logits, 4.0))
    assert value("kd", ViewOutputs(STUDENT, TEACHER, kl, LABELS, LABELS)) == 0


def test_a_training_reads_its_options(small: dict[str, Any], teacher: Path, tmp_path: Path) -> None:
    shared = {**small, "teacher": teacher, "cache": "off", "loss": "dkd"}
    runs = [
        train_student(StudentConfig.load(**shared, out=tmp_path / name, losses=[f"dkd.{name}"]))
        for name in ("beta=8", "beta=2")
    ]
    first, second = (run.read_metrics()[0].loss_parts["dkd"] for run in runs)
    assert first > 2 * second > 0
    assert runs[1].config.losses.dkd.beta == 2
