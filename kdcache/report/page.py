"""The report as one page: no network, no script, everything inside."""

import base64
import shlex
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import kdcache
from kdcache.analysis.curves import ErrorCurve
from kdcache.analysis.disagreement import DisagreementReport, Example
from kdcache.analysis.groups import RunGroup
from kdcache.analysis.kl_ratio import RatioCurve
from kdcache.analysis.summary import RunSummary
from kdcache.files import write_text
from kdcache.report.charts import draw_by_lambda, draw_error_curves, draw_over_epochs, draw_ratios
from kdcache.report.gallery import said
from kdcache.report.sheets import (
    classes_sheet,
    disagreement_sheet,
    errors_sheet,
    ratios_sheet,
    runs_sheet,
    summary_sheet,
)
from kdcache.report.style import inline_svg
from kdcache.run.records import RunRecord

__all__ = ["page", "write_page"]

CLASSES_SHOWN = 20


class Chart(NamedTuple):
    """A chart of the page, and what it shows in words."""

    title: str
    words: str
    svg: Markup


def write_page(summary: RunSummary, path: Path) -> None:
    """Write the report as an HTML file, whole or not at all."""
    write_text(path, page(summary))


def page(summary: RunSummary) -> str:
    """Make the report's page. Every name that comes from a file is escaped on its way into it."""
    numbers = count(1)

    def chart(title: str, words: str, draw: Callable[[], Figure]) -> Chart:
        return Chart(title, f"{title}. {words}", Markup(inline_svg(draw, f"chart{next(numbers)}")))

    environment = Environment(
        loader=PackageLoader("kdcache.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    datasets = sorted({run.config.dataset for run in summary.runs})
    return environment.get_template("page.html").render(
        title=f"Distillation on {', '.join(datasets)}",
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        version=kdcache.__version__,
        scope=f"{len(summary.runs)} runs in {len(summary.groups)} groups.",
        summary=summary,
        outcome=summary_sheet(summary.groups),
        curves=_curves(summary, chart),
        errors=errors_sheet(summary.errors),
        ratio=_ratio(summary.ratios, chart),
        ratios=ratios_sheet(summary.ratios),
        studies=[_disagreement(report, chart) for report in summary.disagreements],
        disputed=_disputed(summary.groups, chart),
        runs=runs_sheet(summary.runs),
        details=[_details(run) for run in summary.runs],
    )


MakeChart = Callable[[str, str, Callable[[], Figure]], Chart]


def _curves(summary: RunSummary, chart: MakeChart) -> list[Chart]:
    charts = []
    trained = [group for group in summary.groups if len(group.by_epoch("test_top1")) > 1]
    if trained:
        words = "; ".join(f"{group.name} {_from_to(group, 'test_top1')} %" for group in trained)
        title = "Test accuracy over the epochs: mean, and standard deviation over the seeds"
        charts.append(chart(title, words, lambda: draw_over_epochs(trained, "test_top1", "test top-1 accuracy (%)")))
    if summary.errors:
        words = "; ".join(map(_errors_in_words, summary.errors))
        title = "Test error against the total number of epochs: mean, and standard deviation over the seeds"
        charts.append(chart(title, words, lambda: draw_error_curves(summary.errors, stacked=True)))
    return charts


def _ratio(curves: Sequence[RatioCurve], chart: MakeChart) -> Chart | None:
    if not curves:
        return None
    words = "; ".join(f"{curve.name} from {curve.mean[0]:.2f} to {curve.mean[-1]:.2f}" for curve in curves)
    return chart(
        "Mean KL ratio r over the iterations, each run's brought to 0 to 1", words, lambda: draw_ratios(curves)
    )


def _disputed(groups: Sequence[RunGroup], chart: MakeChart) -> Chart | None:
    mixing = [group for group in groups if group.by_epoch("label_disagreement")]
    if not mixing:
        return None
    words = "; ".join(f"{group.name} {_from_to(group, 'label_disagreement', 100)} %" for group in mixing)
    title = "Labels of mixed views that the teacher disputed during training, as the paper counted them"
    draw = lambda: draw_over_epochs(mixing, "label_disagreement", "disputed labels (%)", 100)  # noqa: E731
    return chart(title, words, draw)


def _disagreement(report: DisagreementReport, chart: MakeChart) -> dict[str, Any]:
    known = [(low, high, share) for low, high, share in report.counts.by_lambda if share.percent is not None]
    words = ", ".join(f"{share.percent:.0f} % for lambda {low:.1f} to {high:.1f}" for low, high, share in known)
    return {
        "name": report.teacher,
        "chart": chart(
            "Share of disputed labels by lambda, with 95 % intervals", words, lambda: draw_by_lambda(report.counts)
        ),
        "figures": disagreement_sheet(report),
        "classes": classes_sheet(report, CLASSES_SHOWN),
        "images": [_image(example) for example in report.examples],
    }


def _image(example: Example) -> dict[str, Any]:
    label = said(example.label, " + ")
    surest = said(example.teacher[:1], "")
    return {
        "source": f"data:image/png;base64,{_png(example.view)}",
        "size": example.view.shape[-1],
        "words": f"Mixed image, labelled {label}; the teacher says {surest}",
        "label": label,
        "teacher": [said([one], "") for one in example.teacher],
    }


def _png(image: Tensor) -> str:
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def _details(run: RunRecord) -> dict[str, str]:
    environment = dict(run.environment)
    command = environment.pop("command", None)
    words = [str(word) for word in command] if isinstance(command, list) else []
    started = environment.get("started_at")
    if isinstance(started, int | float):
        environment["started_at"] = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(started))
    return {
        "path": str(run.path),
        "command": shlex.join([Path(words[0]).name, *words[1:]]) if words else "the command is not recorded",
        "environment": "\n".join(f"{name}: {value}" for name, value in environment.items()) or "not recorded",
        "settings": run.config.to_toml(),
    }


def _from_to(group: RunGroup, name: str, scale: float = 1.0) -> str:
    (_, first), *_, (_, last) = [*group.by_epoch(name)] * 2
    return f"from {scale * (first.mean or 0.0):.1f} to {scale * (last.mean or 0.0):.1f}"


def _errors_in_words(curve: ErrorCurve) -> str:
    points = (f"{point.last.mean:.1f} % after {point.epochs}" for point in curve.points if point.last.mean is not None)
    return f"{curve.name} {', '.join(points)} epochs"
