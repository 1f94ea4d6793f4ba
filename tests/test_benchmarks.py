"""The parts of a step that the benchmarks measure are those of the step as it is."""

from pathlib import Path

import pytest

from kdcache.compute import Compute

PARTS = {"teacher's logits", "scoring forward", "training forward", "losses", "backward", "optimizer", "record"}


def test_every_part_of_a_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from our_step import OurSteps

    steps = OurSteps("resnet8:resnet8", 2, tmp_path, Compute.choose("cpu"))
    for name in ("online", "cached"):
        seconds = steps.parts(name)
        assert seconds.keys() == PARTS | {"views", "the rest"}
        assert min(seconds[part] for part in PARTS) > 0
