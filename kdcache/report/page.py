"""The report as one HTML page without scripts and external resources."""

import base64
import shlex
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import count
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import kdcache
from kdcache.analysis.curves import ErrorCurve
from kdcache.analysis.disagreement import DisagreementReport, Example
from kdcache.analysis.evaluation import Evaluation, EvaluationReport
from kdcache.analysis.groups import RunGroup
from kdcache.analysis.kl_ratio import KLRatioCurve
from kdcache.analysis.summary import RunSummary
from kdcache.report.analysis_tables import (
    classes_table,
    disagreement_table,
    errors_table,
    groups_table,
    kl_ratio_table,
    runs_table,
)
from kdcache.report.charts import draw_by_lambda, draw_over_epochs, plot_error_curves, plot_kl_ratios
from kdcache.report.evaluation_charts import describe_mistake, draw_confusion, draw_reliability
from kdcache.report.evaluation_tables import evaluation_tables, with_short_names
from kdcache.report.gallery import format_probabilities
from kdcache.report.style import inline_svg
from kdcache.run.records import RunRecord

__all__ = ["render_page"]

MAX_CLASSES = 20
"""Classes in the table of label disagreement by class."""

MAX_NETWORKS = 6
"""Networks whose confusion and mistakes are drawn."""


class Chart(NamedTuple):
    """A chart with its title, and its content as text for screen readers."""

    title: str
    description: str
    svg: Markup


MakeChart = Callable[[str, str, Callable[[], Figure]], Chart]
"""Makes a chart from its title, its content as text, and the function that draws it."""


def render_page(summary: RunSummary) -> str:
    """Render the report; text from files is escaped."""
    numbers = count(1)

    def chart(title: str, content: str, draw: Callable[[], Figure]) -> Chart:
        return Chart(title, f"{title}. {content}", Markup(inline_svg(draw, f"chart{next(numbers)}")))

    environment = Environment(
        loader=PackageLoader("kdcache.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    datasets = sorted({run.config.dataset for run in summary.runs})
    return environment.get_template("page.html").render(
        title=f"Distillation on {', '.join(datasets)}",
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        version=kdcache.__version__,
        scope=f"{len(summary.runs)} runs in {len(summary.groups)} groups.",
        missing=summary.missing,
        groups=groups_table(summary.groups),
        evaluations=[_evaluation(report, chart) for report in summary.evaluations],
        curves=_curves(summary, chart),
        errors=errors_table(summary.errors),
        ratio=_ratio(summary.ratios, chart),
        ratios=kl_ratio_table(summary.ratios),
        disagreements=[_disagreement(report, chart) for report in summary.disagreements],
        training_disagreement=_training_disagreement(summary.groups, chart),
        runs=runs_table(summary.runs),
        details=[_details(run) for run in summary.runs],
    )


def _curves(summary: RunSummary, chart: MakeChart) -> list[Chart]:
    charts = []
    trained = [group for group in summary.groups if len(group.by_epoch("test_top1")) > 1]
    if trained:
        content = "; ".join(f"{group.name} {_from_to(group, 'test_top1')} %" for group in trained)
        title = "Test accuracy over the epochs: mean and standard deviation over the seeds"
        charts.append(chart(title, content, lambda: draw_over_epochs(trained, "test_top1", "test top-1 accuracy (%)")))
    if summary.errors:
        content = "; ".join(map(_describe_errors, summary.errors))
        title = "Test error by the total number of epochs: mean and standard deviation over the seeds"
        charts.append(chart(title, content, lambda: plot_error_curves(summary.errors, stacked=True)))
    return charts


def _ratio(curves: Sequence[KLRatioCurve], chart: MakeChart) -> Chart | None:
    if not curves:
        return None
    content = "; ".join(f"{curve.name} from {curve.mean[0]:.2f} to {curve.mean[-1]:.2f}" for curve in curves)
    return chart("Mean KL ratio r over the iterations, scaled to [0, 1]", content, lambda: plot_kl_ratios(curves))


def _training_disagreement(groups: Sequence[RunGroup], chart: MakeChart) -> Chart | None:
    mixing = [group for group in groups if group.by_epoch("label_disagreement")]
    if not mixing:
        return None
    content = "; ".join(f"{group.name} {_from_to(group, 'label_disagreement', 100)} %" for group in mixing)

    def draw() -> Figure:
        return draw_over_epochs(mixing, "label_disagreement", "label disagreement (%)", 100)

    return chart("Label disagreement on the mixed views during training, as counted in the paper", content, draw)


def _disagreement(report: DisagreementReport, chart: MakeChart) -> dict[str, Any]:
    by_lambda = [(low, high, found) for low, high, found in report.counts.by_lambda if found.percent is not None]
    content = ", ".join(f"{found.percent:.0f} % for lambda {low:.1f} to {high:.1f}" for low, high, found in by_lambda)
    title = "Label disagreement by lambda, with 95 % intervals"
    return {
        "name": report.teacher,
        "chart": chart(title, content, lambda: draw_by_lambda(report.counts)),
        "table": disagreement_table(report),
        "classes": classes_table(report, MAX_CLASSES),
        "images": [_mixed_image(example) for example in report.examples],
    }


def _mixed_image(example: Example) -> dict[str, Any]:
    label = format_probabilities(example.label, " + ")
    top1 = format_probabilities(example.teacher[:1], "")
    description = f"Mixed image labeled {label}; the teacher predicts {top1}"
    return _image(example.view, description, label, [format_probabilities([one], "") for one in example.teacher])


def _image(view: Tensor, description: str, label: str, lines: list[str]) -> dict[str, Any]:
    source = f"data:image/png;base64,{_png(view)}"
    return {"source": source, "size": view.shape[-1], "description": description, "label": label, "lines": lines}


def _evaluation(report: EvaluationReport, chart: MakeChart) -> dict[str, Any]:
    evaluations = with_short_names(report.evaluations)[:MAX_NETWORKS]
    names = report.class_names
    errors = (f"{one.name} {one.quality.calibration.error:.1f} %" for one in evaluations)
    title = "Accuracy against confidence, with 95 % intervals: on the diagonal, confidence is right"
    content = f"Expected calibration error: {', '.join(errors)}"
    return {
        "tables": evaluation_tables(report),
        "reliability": chart(title, content, lambda: draw_reliability(evaluations)),
        "networks": [_network(one, names, chart) for one in evaluations],
    }


def _network(one: Evaluation, names: Sequence[str], chart: MakeChart) -> dict[str, Any]:
    wrong = [pair for pair in one.quality.confusion if pair.first != pair.second][:3]
    content = ", ".join(f"{pair.images} {names[pair.first]} taken for {names[pair.second]}" for pair in wrong)
    title = "Which share of the images of each class is taken for each class, in percent"
    images = []
    for mistake, view in zip(one.mistakes, one.views, strict=True):
        lines = describe_mistake(mistake, names)
        images.append(_image(view, f"Image of {names[mistake.label]}; {', '.join(lines)}", names[mistake.label], lines))
    matrix = chart(title, content or "Every image is classified correctly", lambda: draw_confusion(one, names))
    return {"name": one.name, "confusion": matrix, "mistakes": images}


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
        "command": shlex.join([words[0].rpartition("/")[2], *words[1:]]) if words else "command not recorded",
        "environment": "\n".join(f"{name}: {value}" for name, value in environment.items()) or "not recorded",
        "settings": run.config.to_toml(),
    }


def _from_to(group: RunGroup, name: str, scale: float = 1.0) -> str:
    by_epoch = group.by_epoch(name)
    first, last = by_epoch[0][1], by_epoch[-1][1]
    return f"from {scale * (first.mean or 0.0):.1f} to {scale * (last.mean or 0.0):.1f}"


def _describe_errors(curve: ErrorCurve) -> str:
    points = (f"{point.last.mean:.1f} % after {point.epochs}" for point in curve.points if point.last.mean is not None)
    return f"{curve.name} {', '.join(points)} epochs"
