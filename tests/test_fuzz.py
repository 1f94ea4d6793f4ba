"""Files altered at random; `benchmarks/fuzz.py` tries many more."""

from pathlib import Path

import pytest

from tests.fuzz import FAILED, KINDS, fuzz


@pytest.mark.parametrize("kind", KINDS)
def test_altered_files_are_rejected_or_read_as_what_they_have_become(kind: str, tmp_path: Path) -> None:
    number = 6 if kind == "resumed run" else 25  # each of them is a training
    verdicts = fuzz(kind, tmp_path, seed=1, numbers=range(number))
    assert len(verdicts) == number
    assert {number: verdict for number, verdict in verdicts.items() if verdict.word in FAILED} == {}
