"""The demo: what it and the pages show as recorded is what was recorded, with the settings that it has."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from kdcache.stages import demo

from kdcache.cli import cli
from kdcache.report.tables import TextTable

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that records the figures."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("record_demo", ROOT / "benchmarks" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorded_figures_are_of_the_students_of_the_demo(script: ModuleType, tmp_path: Path) -> None:
    recorded = demo.recorded_figures()
    assert recorded["seeds"] == list(script.SEEDS)
    assert list(recorded["top1"]) == list(recorded["settings"]) == list(demo.STUDENTS)
    for name, settings in recorded["settings"].items():
        config = demo.demo_student_config(name, tmp_path, seed=0)
        assert {key: getattr(config, key) for key in script.SETTINGS} == settings
        assert len(recorded["top1"][name]) == len(recorded["kl_ratio"]) == len(recorded["seeds"])


def test_differences_and_pages_follow_from_the_recorded_figures(script: ModuleType) -> None:
    recorded = demo.recorded_figures()
    top1 = recorded["top1"]
    for (one, other), interval in zip(demo.DIFFERENCES, recorded["differences"], strict=True):
        assert script.difference(top1[one], top1[other]) == pytest.approx(interval)
    for page, lines in script.marked_lines(recorded).items():
        assert script.MARKED.findall(page.read_text("utf-8")) == [lines], "run benchmarks/demo.py"


class Run:
    """A finished run, as far as the demo looks at it."""

    def __init__(self, path: Path, top1: float) -> None:
        self.path = path
        self.summary = {"model": "resnet8", "last_top1": top1, "seconds": 3.0, "teacher_forwards": 5}

    def read_metrics(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(kl_ratio=1.0), SimpleNamespace(kl_ratio=1.345)]


RECORDED = {
    "date": "2026-01-02",
    "seeds": [0, 1, 2],
    "top1": {"CE": [80.0, 80.0, 82.0], "KD": [83.0, 84.0, 85.0], "CutMix-pick": [84.0, 86.0, 88.0]},
    "kl_ratio": [1.25, 1.25, 1.25],
    "differences": [{"mean": 3.335, "low": 1.9, "high": 4.77}, {"mean": 2.0, "low": -0.48, "high": 4.48}],
}


def test_the_demo_shows_recorded_figures_beside_those_of_its_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seeds, top1 = set(), {("ce", "standard"): 80.5, ("kd", "standard"): 83.25, ("kd", "cutmix-pick"): 82.0}

    def train(config: Any, reporter: object) -> Run:
        seeds.add(config.seed)
        assert config.schedule == "cosine"
        return Run(config.out, top1[config.loss, config.aug])

    found = SimpleNamespace(as_json=lambda: {"overall": 1})
    for name, stub in {
        "load_teacher": lambda weights, config, reporter: Run(config.out, 91.0),
        "train_student": train,
        "demo_disagreement": lambda teacher: found,
        "disagreement_table": lambda report: TextTable("Disagreement", ("samples",), [("36.6 %",)]),
        "plot_disagreements": lambda report, file: None,
        "recorded_figures": lambda: RECORDED,
    }.items():
        monkeypatch.setattr(demo, name, stub)
    out = tmp_path / "demo"
    out.mkdir()
    done = CliRunner().invoke(cli, ["demo", "--seed", "7", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert seeds == {7}
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines()]
    assert ["resnet8", "teacher, CutMix-pick", "82.00", "86.00 (2.00)", "5", "3"] in rows
    assert ["KD minus CE", "+2.75", "+3.33 (+1.90 to +4.77)"] in rows
    assert ["CutMix-pick minus KD", "-1.25", "+2.00 (-0.48 to +4.48)"] in rows
    assert ["KL ratio r of CutMix-pick", "1.34", "1.25 (0.00)"] in rows
    assert done.output.count("3 seeds, recorded 2026-01-02") == 2
    assert "One seed decides nothing" in done.output
