"""The parts of the page about what was measured for it: label disagreement, and networks side by side."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from kdcache.analysis.disagreement import DisagreementReport, Example
from kdcache.analysis.evaluation import Evaluation, EvaluationReport
from kdcache.report.analysis_tables import classes_table, disagreement_table
from kdcache.report.charts import draw_by_lambda
from kdcache.report.evaluation_charts import describe_mistake, draw_confusion, draw_reliability
from kdcache.report.evaluation_tables import evaluation_tables, with_short_names
from kdcache.report.tables import format_probabilities

if TYPE_CHECKING:
    from kdcache.report.page import MakeChart

__all__ = ["disagreement_part", "evaluation_part"]

MAX_CLASSES = 20
"""Classes in the table of label disagreement by class."""

MAX_NETWORKS = 6
"""Networks whose confusion and mistakes are drawn."""


def disagreement_part(report: DisagreementReport, chart: "MakeChart") -> dict[str, Any]:
    """Show the label disagreement of a teacher."""
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


def evaluation_part(report: EvaluationReport, chart: "MakeChart") -> dict[str, Any]:
    """Show networks side by side; confusion and mistakes of the first ones."""
    evaluations = with_short_names(report.evaluations)[:MAX_NETWORKS]
    names = report.class_names
    errors = (f"{one.name} {one.quality.calibration.error:.1f} %" for one in evaluations)
    title = "Accuracy against confidence, with 95 % intervals: on the diagonal, confidence is right"
    content = f"Expected calibration error: {', '.join(errors)}"
    return {
        "tables": evaluation_tables(report),
        "reliability": chart(title, content, lambda: draw_reliability(evaluations)),
        "networks": [_network(one, names, chart) for one in evaluations],
        "left_out": len(report.evaluations) - len(evaluations),
    }


def _network(one: Evaluation, names: Sequence[str], chart: "MakeChart") -> dict[str, Any]:
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
