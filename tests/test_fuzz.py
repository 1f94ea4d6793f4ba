"""A short run of the fuzzing benchmark, whose full results are in docs/results/fuzz.md."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_altered_files_are_refused_or_read_correctly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--inputs", "40", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "| store | 40 |" in done.stdout
    assert list(tmp_path.iterdir()) == []
