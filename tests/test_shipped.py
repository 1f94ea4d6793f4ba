"""The shipped teacher matches its card."""

import re
from pathlib import Path

import torch

from kdcache import datasets, training
from kdcache.compute import Compute
from kdcache.models import checkpoint
from kdcache.models.sources import shipped_teacher

CARD = (Path(__file__).parents[1] / "data" / "fashion-mini-teacher.md").read_text("utf-8")


def test_the_shipped_teacher_is_as_accurate_as_its_card_states() -> None:
    found = re.search(r"top-1 (\d\d\.\d\d) %", CARD)
    assert found is not None
    network = checkpoint.load(shipped_teacher())
    accuracy = training.evaluate(network, datasets.load("fashion-mini").test, Compute(torch.device("cpu"), "float32"))
    assert accuracy.top1 >= 91
    # The card states the accuracy in bfloat16.
    assert abs(accuracy.top1 - float(found[1])) < 0.2
    assert checkpoint.fingerprint(network) in CARD
