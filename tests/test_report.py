"""The report: its content, incomplete runs, and how a browser renders it."""

import csv
import html
import json
import re
import shutil
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from kdcache.stages import train_student
from PIL import Image

from kdcache.analysis.summary import RunSummary, summarize_runs
from kdcache.checked_files import write_toml
from kdcache.cli import cli
from kdcache.config import StudentConfig
from kdcache.errors import UsageError
from kdcache.report.page import render_page
from kdcache.report.tables import TextTable, to_markdown
from kdcache.report.text_formats import TEXT_FORMATS
from tests.run_files import change_config, change_json

GROUPS = ["resnet8 ce standard", "resnet8 kd cutmix-pick"]


@pytest.fixture(scope="module")
def runs(small: dict[str, object], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, two students of one group, and one of another, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(teacher, folder / "teacher")
    for name, settings in {
        "pick-0": {"aug": "cutmix-pick", "seed": 0},
        "pick-1": {"aug": "cutmix-pick", "seed": 1},
        "labels": {"loss": "ce", "seed": 0},
    }.items():
        options = {**small, "epochs": 2, "out": folder / name, **settings}
        named = {} if "loss" in settings else {"teacher": folder / "teacher"}
        train_student(StudentConfig.load(**options, **named))
    return folder


@pytest.fixture(scope="module")
def summary(runs: Path) -> RunSummary:
    return summarize_runs([runs], samples=60, device="cpu")


class ParsedPage(HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_complete_and_self_contained(summary: RunSummary) -> None:
    parsed = ParsedPage(render_page(summary))
    assert summary.missing == ()
    assert [group.name for group in summary.groups] == ["teacher resnet8", *GROUPS]
    assert {"teacher resnet8", *GROUPS, "bright", "52.1 %"} <= set(parsed.text)
    charts = [one["aria-label"] for one in parsed.of("div") if one.get("role") == "img"]
    assert len(charts) == len(parsed.of("svg")) == 5
    assert all(words and len(words) > 40 for words in charts)
    shown = summary.disagreements[0].examples
    assert len(parsed.of("img")) == len(shown) > 0
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/png;base64,") for image in parsed.of("img"))
    addresses = [tag[key] or "" for _, tag in parsed.tags for key in ("src", "href", "xlink:href") if key in tag]
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    assert parsed.of("script") == []


def test_identifiers_of_the_charts_are_unique(summary: RunSummary) -> None:
    text = render_page(summary)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(names)) == len(names)
    wanted = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
    assert set(wanted) <= set(names)


def test_all_formats_agree(summary: RunSummary, runs: Path) -> None:
    document = json.loads(TEXT_FORMATS["json"](summary))
    by_name = {group["name"]: group for group in document["groups"]}
    last = [json.loads((runs / name / "summary.json").read_text())["last_top1"] for name in ("pick-0", "pick-1")]
    assert by_name[GROUPS[1]]["last_top1"]["mean"] == pytest.approx(sum(last) / 2)
    assert by_name[GROUPS[1]]["last_top1"]["n"] == 2
    lines = list(csv.DictReader(StringIO(TEXT_FORMATS["csv"](summary))))
    assert [line["group"] for line in lines] == ["teacher resnet8", *GROUPS]
    assert float(lines[2]["last_top1_mean"]) == pytest.approx(sum(last) / 2)
    assert (lines[2]["runs"], lines[2]["pick"], lines[1]["last_top1_std"]) == ("2", "kld", "")
    text = TEXT_FORMATS["markdown"](summary)
    assert f"| {GROUPS[1]} |" in text
    assert f"{sum(last) / 2:.2f} (" in text
    assert f"{sum(last) / 2:.2f} (" in render_page(summary)


def test_missing_files_are_listed_and_the_rest_is_shown(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    (folder / "pick-1" / "summary.json").unlink()
    (folder / "labels" / "metrics.jsonl").write_text("{broken")
    (folder / "labels" / "environment.json").unlink()
    (folder / "young").mkdir()
    shutil.copy(folder / "pick-1" / "config.toml", folder / "young")
    (folder / "broken").mkdir()
    write_toml(folder / "broken" / "config.toml", '[student]\nmodel = "resnet9"\n')
    (folder / "teacher" / "model.safetensors").write_bytes(b"cut short")
    shutil.rmtree(folder / "pick-0" / "statistics.zarr")
    for config in folder.glob("*/config.toml"):
        change_config(config, lambda text: text.replace(str(runs), str(folder)))
    found = summarize_runs([folder, tmp_path / "nowhere"], samples=20, device="cpu")
    for place, words in (
        ("pick-1", "unfinished"),
        ("young", "no epoch is complete"),
        ("labels", "could not read"),
        ("labels", "no environment.json"),
        ("broken", "resnet9"),
        ("pick-0", "no statistics.zarr"),
        ("nowhere", "got nothing"),
        ("label disagreement of", "model.safetensors"),
    ):
        assert [line for line in found.missing if place in line and words in line], (place, words, found.missing)
    picked = next(group for group in found.groups if group.name == GROUPS[1])
    assert (len(picked.runs), picked.result("last_top1").n) == (3, 1)
    assert [curve.name for curve in found.ratios] == [GROUPS[1]]
    text = html.unescape(render_page(found))
    assert all(line in text for line in found.missing)
    assert "1 (+2 unfinished)" in text
    for write in TEXT_FORMATS.values():
        assert GROUPS[1] in write(found)


def run_command(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_commands_write_the_files_that_they_print(runs: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path)
    output = run_command("analyze", "kl-ratio", runs, *out)
    assert "n" in output
    figures = json.loads((tmp_path / "kl-ratio.json").read_text())
    assert [curve["name"] for curve in figures["kl_ratios"]] == [GROUPS[1]]
    assert 1 < figures["kl_ratios"][0]["overall"]["mean"] < 2
    assert figures["images"][0]["run"] == str(runs / "pick-0")
    output += run_command("analyze", "curves", runs, *out)
    assert [curve["name"] for curve in json.loads((tmp_path / "curves.json").read_text())] == [
        "teacher resnet8",
        *GROUPS,
    ]
    teacher = ("--teacher", runs / "pick-0", "--device", "cpu", *out)  # selects its teacher
    output += run_command("analyze", "teacher", *teacher, "--epochs", 1, "--aug", "standard", "--aug", "cutmix")
    document = json.loads((tmp_path / "augmentations.json").read_text())
    assert document["teacher"] == str(runs / "teacher")
    assert {one["aug"] for one in document["augmentations"]} == {"standard", "cutmix"}
    output += run_command("analyze", "disagreement", *teacher, "--samples", 50, "--aug", "mixup", "--split", "val")
    assert json.loads((tmp_path / "disagreement.json").read_text())["disagreement"]["of"] == 50
    pictures = [Path(line.removeprefix("picture: ")) for line in output.splitlines() if line.startswith("picture: ")]
    assert len(pictures) == 6
    for picture in pictures:
        with Image.open(picture) as opened:
            assert min(opened.size) > 100
    run_command("report", runs, "--samples", 0, "--out", tmp_path / "report.html")
    assert "Not measured" in (tmp_path / "report.html").read_text()
    assert run_command("report", runs, "--format", "csv").startswith("group,kind,dataset")


def test_a_report_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        summarize_runs([tmp_path / "nowhere"])


def test_names_from_files_are_escaped(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs / "labels", folder)
    change_json(folder / "environment.json", command=["kdcache", "</pre><script>alert(1)</script>"])
    parsed = ParsedPage(render_page(summarize_runs([folder], samples=0)))
    assert parsed.of("script") == []
    assert parsed.of("img") == []
    assert any("onerror" in text for text in parsed.text)
    table = to_markdown(TextTable("t", ("a", "b"), [("x|y\n<b>", "1")]))
    assert table.splitlines()[-1] == "| x\\|y \\<b\\> | 1 |"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_report(browser, summary: RunSummary, tmp_path: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "report.html"
    path.write_text(render_page(summary), encoding="utf-8")
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: messages.append(message.text))
    view.on("pageerror", lambda error: messages.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]

    assert view.evaluate("document.documentElement.scrollWidth") <= width  # no horizontal scrolling
    tables = view.locator("table")
    assert tables.count() == 7
    assert all(tables.nth(place).locator("tbody tr").count() for place in range(7))
    sizes = "all => all.map(one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height])"
    pictures = view.locator("svg").evaluate_all(sizes) + view.locator("main img").evaluate_all(sizes)
    assert len(pictures) == 5 + len(summary.disagreements[0].examples)
    assert all(wide > 60 and high > 60 for wide, high in pictures)
    assert view.locator("main img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
    # Page and charts have the text color of the scheme, with enough contrast to the background.
    text_color, chart_color, background = view.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('svg text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    assert text_color == chart_color
    assert contrast(text_color, background) > 7
    view.close()


def contrast(one: str, other: str) -> float:
    """Contrast of two colors, as the Web Content Accessibility Guidelines define it."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
