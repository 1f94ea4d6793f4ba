"""The examples: each trains twice, and the second training needs no teacher forward for the same loss."""

import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.examples

EXAMPLES = Path(__file__).parents[1] / "examples"

FORWARDS = {"plain_pytorch": 1800, "lightning_module": 1200, "hugging_face_trainer": 1200, "timm_training": 1200}
"""Samples times kinds of views times epochs."""


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*FORWARDS}


@pytest.mark.parametrize("name", FORWARDS)
def test_an_example_computes_the_logits_once(name: str, tmp_path: Path) -> None:
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 60
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = re.findall(r"^teacher forwards (\d+), loss (\d+\.\d+)$", run.stdout, re.M)
    assert [int(forwards) for forwards, _ in found] == [FORWARDS[name], 0]
    assert found[0][1] == found[1][1]


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "distillation.ipynb", 4)
    for cell in notebook.cells:
        for given, quick in (
            ("EPOCHS, TEMPERATURE = 6", "EPOCHS, TEMPERATURE = 1"),
            ("fraction=0.25", "fraction=0.05"),
        ):
            cell.source = cell.source.replace(given, quick)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "stream"
    )
    assert "CutMix-pick  {'teacher_forwards': 0, 'cache_hits': 900}" in printed
