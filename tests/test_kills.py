"""Trainings and precomputations that are killed and resumed; `benchmarks/kill.py` kills many more."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.kills import PRECOMPUTATIONS, Precomputation, kill_and_resume, make_training

KILLS = 3


@pytest.mark.parametrize(
    "name", ["teacher", "student, crd+kd, no store", "student, AdamW, cosine, EMA, frozen, unlabelled"]
)
def test_a_killed_and_resumed_training_ends_with_the_same_bits(
    name: str, small: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    few = {**small, "train_fraction": 0.4}  # 36 images, in 12 steps with a checkpoint each
    counts = kill_and_resume(make_training(name, few, teacher, tmp_path), KILLS, Random(name))
    assert counts["kills"] >= KILLS
    assert counts["resumed"] >= 1
    assert counts["equal"] == counts["finished"]


@pytest.mark.parametrize("name", PRECOMPUTATIONS)
def test_killed_precomputations_lose_nothing_and_end_with_the_same_bits(
    name: str, small: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    settings = {key: small[key] for key in ("dataset", "image_size", "device", "precision")}
    counts = kill_and_resume(Precomputation(name, settings, teacher, tmp_path, epochs=4), KILLS, Random(name))
    assert counts["kills"] >= KILLS
    assert counts["lost"] == 0
    assert counts["equal"] == counts["finished"]
