"""What the report leads with, on runs whose figures are known, and how it looks with many runs and with long names."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdcache.analysis.curves import error_curves, lowest_first
from kdcache.analysis.estimates import Proportion
from kdcache.analysis.evaluation import Evaluation
from kdcache.analysis.groups import RunGroup, group_runs
from kdcache.analysis.metrics import ClassPair
from kdcache.analysis.outcomes import network_size
from kdcache.analysis.summary import RunSummary, summarize_runs
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.models import build
from kdcache.report.charts import draw_over_epochs
from kdcache.report.evaluation_charts import draw_confusion
from kdcache.report.page import render_page
from kdcache.report.style import write_figure
from kdcache.report.tables import shortened
from kdcache.report.text_formats import TEXT_FORMATS
from kdcache.run.folder import RunFolder
from kdcache.run.records import load_runs
from tests.many_runs import write_run, write_runs
from tests.run_files import change_json

LONG = f"{'n' * 40}-and-{'m' * 15}"


class Sections(HTMLParser):
    """The sections of a page in their order, with the texts in each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.texts[dict(attrs)["id"] or ""] = []

    def handle_data(self, data: str) -> None:
        if self.texts and data.strip():
            self.texts[[*self.texts][-1]].append(data.strip())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with 90 %, two students with labels alone with 70 and 72 %, and two distilled ones with 80 and 83 %."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "teacher", TeacherConfig.load(model="resnet20", epochs=3), 90.0)
    for name, loss, seed, top1 in (
        ("a", "ce", 0, 70.0),
        ("b", "ce", 1, 72.0),
        ("c", "kd", 0, 80.0),
        ("d", "kd", 1, 83.0),
    ):
        teacher = {"teacher": folder / "teacher"} if loss == "kd" else {}
        write_run(folder / name, StudentConfig.load(loss=loss, seed=seed, epochs=3, **teacher), top1, samples=8)
    return folder


@pytest.fixture(scope="module")
def summary(folder: Path) -> RunSummary:
    return summarize_runs([folder], samples=0)


def test_the_page_leads_with_what_came_out(summary: RunSummary) -> None:
    sections = Sections(render_page(summary)).texts
    assert [*sections] == ["summary", "curves", "groups", "ratio", "disagreement", "runs"]
    facts = sections["summary"]
    # (81.5 - 71) / (90 - 71) = 55.3 %; the best epoch has half a point more.
    for text in (
        *("81.50 %", "resnet8 kd standard, mean of 2 runs (std 2.12); 82.00 % after the best epoch"),
        *("90.00 %", "resnet20, 8.50 points above the student"),
        *("55 %", "71.00 % with labels alone (resnet8 ce standard)"),
    ):
        assert text in facts
    rows = [facts.index(name) for name in ("teacher resnet20", "resnet8 kd standard", "resnet8 ce standard")]
    assert rows == sorted(rows)
    group = json.loads(TEXT_FORMATS["json"](summary))["groups"][2]
    assert group["gap_closed_percent"] == pytest.approx(100 * 10.5 / 19)
    assert group["points_below_teacher"] == pytest.approx(8.5)
    assert TEXT_FORMATS["markdown"](summary).startswith("## Results on fashion-mini\n")


def test_sizes_are_those_of_the_networks(summary: RunSummary, folder: Path) -> None:
    for name, model in (("teacher", "resnet20"), ("c", "resnet8")):
        parameters = sum(one.numel() for one in build(model, num_classes=10).parameters())
        file = RunFolder(folder / name).network_file
        assert network_size(file) == (parameters, file.stat().st_size)
        assert f"{parameters:,}" in " ".join(Sections(render_page(summary)).texts["summary"])


def test_what_is_missing_comes_last(folder: Path, tmp_path: Path) -> None:
    found = summarize_runs([folder, tmp_path / "nowhere"], samples=0)
    page = render_page(found)
    sections = Sections(page).texts
    assert [*sections][-1] == "missing"
    assert any("nowhere" in text for text in sections["missing"])
    assert 0 < page.index('href="#missing"') < page.index('id="curves"')  # the top says so
    assert TEXT_FORMATS["markdown"](found).rstrip().splitlines()[-1].startswith("| run folder")


def test_a_single_run_has_a_page_with_its_teacher_and_losses(folder: Path) -> None:
    found = summarize_runs([folder / "d"], samples=0)
    assert found.missing == ()
    sections = Sections(render_page(found)).texts
    assert {"83.00 %", "90.00 %", "resnet20, 7.00 points above the student"} <= {*sections["summary"]}
    assert {"Loss over the epochs", "training loss"} <= {*sections["curves"]}


def test_an_unfinished_run_shows_how_far_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", StudentConfig.load(loss="ce", epochs=4), 60.0, samples=8)
    (tmp_path / "run" / "summary.json").unlink()
    facts = Sections(render_page(summarize_runs([tmp_path / "run"], samples=0))).texts["summary"]
    assert {"4 of 4", "60.00 %", "top-1 after epoch 4"} <= {*facts}


def test_a_teacher_that_was_trained_again_is_not_the_one_that_taught(folder: Path, tmp_path: Path) -> None:
    later = tmp_path / "teacher"
    write_run(later, TeacherConfig.load(model="resnet20", epochs=2), 95.0)
    change_json(later / "summary.json", finished_at=1.8e9)
    write_run(tmp_path / "student", StudentConfig.load(teacher=later, epochs=2), 80.0, samples=8)
    found = summarize_runs([tmp_path], samples=0)
    (line,) = found.missing
    assert "trained again" in line
    assert found.outcomes[1].teacher is None
    assert "its teacher" not in render_page(found)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and twelve groups of students."""
    folder = tmp_path_factory.mktemp("many")
    write_runs(folder, 1 + 5 * 12, epochs=2, samples=4)
    return folder


def test_of_many_groups_the_best_are_shown_and_the_others_are_counted(many: Path) -> None:
    found = summarize_runs([many], samples=0)
    means = sorted((one.last.mean or 0.0 for one in found.outcomes if one.is_student), reverse=True)
    assert len(means) == 12
    text = " ".join(Sections(page := render_page(found)).texts["summary"])
    shown = re.findall(r"\b(\d\d\.\d\d) \(\d", text)[::2]
    assert shown == [f"{mean:.2f}" for mean in means[:10]]
    assert "2 more groups below" in text
    assert f"{means[0]:.2f} %" in text
    legends = [part.partition("</ul>")[0].count("<li>") for part in page.split('class="legend"')[1:]]
    assert legends == [6, 6, 6]
    assert "(7 more groups are not drawn)" in page  # of 13 with the teacher
    assert page.count("<svg") == 3


def test_of_many_curves_the_best_are_drawn_and_all_are_in_the_file(many: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["analyze", "curves", str(many), "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert "7 more curves are in curves.json, and not drawn" in done.output
    curves = error_curves(load_runs([many]).runs)
    assert len(json.loads((tmp_path / "curves.json").read_text())) == len(curves) == 13
    errors = [curve.points[0].last.mean for curve in lowest_first(curves)]
    assert errors == sorted(errors)


def test_what_is_recorded_is_reported_without_torch_and_statistics(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "report.html")
    for words in (["--out", out], ["--format", "csv"], ["--format", "json"]):
        code = (
            "import sys; from kdcache.cli import cli\n"
            f"cli(['report', {str(folder)!r}, *{words!r}], standalone_mode=False)\n"
            "assert not {'torch', 'zarr'} & sys.modules.keys()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_one_run_a_side_is_compared_without_an_interval(folder: Path) -> None:
    sides = [str(folder / "c"), "--", str(folder / "a")]
    found = json.loads(CliRunner().invoke(cli, ["compare", "--format", "json", *sides]).output)
    assert (found["mean_difference"], found["difference"]) == (10.0, None)
    text = CliRunner().invoke(cli, ["compare", *sides]).output
    assert re.search(r"left - right .*\+10\.00.*none: needs two runs per side", text)


def test_csv_has_no_place_for_what_is_measured(folder: Path) -> None:
    for words in (["--samples", "20"], ["--evaluate"]):
        done = CliRunner().invoke(cli, ["report", str(folder), "--format", "csv", *words])
        assert isinstance(done.exception, UsageError)
        assert f"{words[0]}: expected another --format" in str(done.exception)


def test_shapes_of_a_network_are_found_without_torchs_compiler() -> None:
    code = (
        "import sys; from kdcache.models import REGISTRY, expected_state\n"
        "assert all(expected_state(name, 10, 32) for name in REGISTRY)\n"
        "assert expected_state('resnet8', 10, 32)['conv1.weight'].shape == (16, 3, 3, 3)\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def groups(folder: Path) -> list[RunGroup]:
    return group_runs(load_runs([folder]).runs)


def plot_inches(figure: Figure) -> tuple[float, float]:
    figure.draw_without_rendering()
    axes: Axes = figure.axes[0]
    box = axes.get_window_extent()
    return box.width / figure.dpi, box.height / figure.dpi


def test_charts_keep_their_plot_at_any_length_of_names(groups: list[RunGroup], tmp_path: Path) -> None:
    sizes = []
    for number, name in enumerate(("n", LONG, 20 * LONG)):
        figure = draw_over_epochs(
            [replace(one, name=f"{place}{name}") for place, one in enumerate(groups)], "test_top1", "%"
        )
        write_figure(figure, tmp_path / f"{number}.png")
        sizes.append(plot_inches(figure))
        assert all(len(text.get_text()) <= 60 for text in figure.legends[0].get_texts())
    assert sizes[1:] == [pytest.approx(sizes[0], rel=0.02)] * 2
    assert min(sizes[0]) > 2.5


def test_a_confusion_matrix_keeps_its_cells_at_any_length_of_names() -> None:
    sizes = []
    for name in ("n", LONG):
        pairs = [ClassPair(first, second, 5) for first in range(3) for second in range(3)]
        quality = SimpleNamespace(confusion=pairs, by_class=[Proportion(5, 15)] * 3)
        evaluation = cast(Evaluation, SimpleNamespace(name=name, quality=quality))
        figure = draw_confusion(evaluation, [f"{name}{number}" for number in range(3)])
        sizes.append(plot_inches(figure))
    assert min(map(min, sizes)) > 2


@pytest.fixture(scope="module")
def long_page(summary: RunSummary) -> str:
    """A page of groups with long names."""
    named = [replace(group, name=f"{place}{LONG}") for place, group in enumerate(summary.groups)]
    outcomes = [replace(one, group=group) for one, group in zip(summary.outcomes, named, strict=True)]
    return render_page(replace(summary, groups=tuple(named), outcomes=tuple(outcomes)))


def test_long_names_are_whole_below_the_chart(long_page: str) -> None:
    legend = long_page[long_page.index('class="legend"') :].partition("</ul>")[0]
    assert all(f"{place}{LONG}" in legend for place in range(3))
    assert all(LONG not in chart for chart in re.findall(r"<svg.*?</svg>", long_page, flags=re.DOTALL))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_narrow_page_the_accuracies_are_in_sight(browser, long_page: str, tmp_path: Path, scheme: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "report.html"
    path.write_text(long_page, encoding="utf-8")
    view = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    view.goto(path.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    in_sight = "all => all.every(one => one.getBoundingClientRect().right <= 390)"
    for seen in (".facts div", "#summary tbody th", "#summary td:nth-child(2)", "#summary td:nth-child(3)", "svg"):
        found = view.locator(seen)
        assert found.count() > 2 or seen == "svg"
        assert found.evaluate_all(in_sight), seen
    top = "one => one.getBoundingClientRect().bottom"
    assert view.locator(".facts div").first.evaluate(top) < 500
    view.close()


def test_names_are_shortened_in_the_middle() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert len(shortened(LONG, 24)) == 24
