"""The report as one HTML page without scripts and external resources."""

from __future__ import annotations  # so that what is recorded is shown without torch

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import kdcache
from kdcache.analysis.curves import ErrorCurve, lowest_first
from kdcache.analysis.groups import RunGroup
from kdcache.analysis.summary import RunSummary
from kdcache.report.analysis_tables import (
    errors_table,
    groups_table,
    ratios_table,
    runs_table,
)
from kdcache.report.charts import draw_losses, draw_over_epochs, plot_error_curves
from kdcache.report.headline import by_dataset, headline, outcomes_table
from kdcache.report.style import MAX_SERIES, LegendEntry, inline_svg

__all__ = ["render_page"]


class Chart(NamedTuple):
    """A chart with its title and legend, and its content as text for screen readers."""

    title: str
    description: str
    svg: Markup
    legend: Sequence[LegendEntry]


MakeChart = Callable[[str, str, Callable[[], Figure]], Chart]
"""Makes a chart from its title, its content as text, and the function that draws it."""


def render_page(summary: RunSummary) -> str:
    """Render the report; text from files is escaped."""
    numbers = count(1)

    def chart(title: str, content: str, draw: Callable[[], Figure]) -> Chart:
        svg, legend = inline_svg(draw, f"chart{next(numbers)}")
        return Chart(title, f"{title}. {content}", Markup(svg), legend)

    environment = Environment(
        loader=PackageLoader("kdcache.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sorted_outcomes = by_dataset(summary.outcomes)
    best = [outcome.group for outcomes in sorted_outcomes.values() for outcome in outcomes]
    return environment.get_template("page.html").render(
        title=f"Distillation on {', '.join(sorted(sorted_outcomes))}",
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        version=kdcache.__version__,
        scope=_scope(summary),
        missing=summary.missing,
        outcomes=[
            {"dataset": name, "facts": headline(outcomes), "table": outcomes_table(outcomes)}
            for name, outcomes in sorted_outcomes.items()
        ],
        curves=[one for groups in sorted_outcomes.values() for one in _curves([own.group for own in groups], chart)],
        error_curves=_errors(summary.errors, chart),
        errors=errors_table(summary.errors if _has_lengths(summary.errors) else ()),
        **_measured(summary, chart),
        groups=groups_table(best),
        ratio=_ratio([group for group in best if group in summary.ratios], chart),
        ratios=ratios_table(summary.ratios),
        training_disagreement=_training_disagreement(best, chart),
        runs=runs_table(summary.runs),
        details=[_details(group) for group in summary.groups],
    )


def _scope(summary: RunSummary) -> str:
    finished = sum(run.finished for run in summary.runs)
    runs, groups = len(summary.runs), len(summary.groups)
    text = f"{runs:,} run{'s' * (runs > 1)} in {groups:,} group{'s' * (groups > 1)}"
    return f"{text}{'' if finished == runs else f', {runs - finished:,} of them unfinished'}."


def _measured(summary: RunSummary, chart: MakeChart) -> dict[str, list[dict[str, Any]]]:
    """Show what was measured for the report, if anything was."""
    if not summary.disagreements and not summary.evaluations:
        return {"disagreements": [], "evaluations": []}
    from kdcache.report.page_measured import disagreement_part, evaluation_part

    return {
        "disagreements": [disagreement_part(report, chart) for report in summary.disagreements],
        "evaluations": [evaluation_part(report, chart) for report in summary.evaluations],
    }


def _curves(groups: Sequence[RunGroup], chart: MakeChart) -> list[Chart]:
    """Draw the accuracy of the groups of a dataset, the best first; the losses of a single group too."""
    charts = []
    trained, left_out = _drawn(groups, "test_top1", 2)
    if trained:
        content = "; ".join(f"{group.name} {_from_to(group, 'test_top1')} %" for group in trained)
        title = f"Test accuracy over the epochs: mean and standard deviation over the seeds{left_out}"
        charts.append(chart(title, content, lambda: draw_over_epochs(trained, "test_top1", "test top-1 accuracy (%)")))
    if len(groups) == len(trained) == 1:
        only = trained[0]
        content = f"Training loss {_from_to(only, 'train_loss')}, cross-entropy {_from_to(only, 'test_loss')}"
        charts.append(chart("Loss over the epochs", content, lambda: draw_losses(only)))
    return charts


def _errors(errors: Sequence[ErrorCurve], chart: MakeChart) -> Chart | None:
    if not _has_lengths(errors):
        return None
    shown = lowest_first(errors)[:MAX_SERIES]
    content = "; ".join(map(_describe_errors, shown))
    title = "Test error by the total number of epochs: mean and standard deviation over the seeds"
    title += _left_out(len(errors) - len(shown))
    return chart(title, content, lambda: plot_error_curves(shown, stacked=True))


def _has_lengths(errors: Sequence[ErrorCurve]) -> bool:
    """Whether there are trainings of several lengths, without which errors by length say nothing."""
    return len({point.epochs for curve in errors for point in curve.points}) > 1


def _drawn(groups: Sequence[RunGroup], name: str, epochs: int = 1) -> tuple[list[RunGroup], str]:
    """Choose the first groups that have a field of the metrics for so many epochs, and say how many others have it."""
    having = [group for group in groups if group.has(name, epochs)]
    return having[:MAX_SERIES], _left_out(len(having) - MAX_SERIES)


def _left_out(count: int) -> str:
    return f" ({count} more groups are not drawn)" if count > 0 else ""


def _ratio(groups: Sequence[RunGroup], chart: MakeChart) -> Chart | None:
    shown, left_out = _drawn(groups, "kl_ratio")
    if not shown:
        return None
    content = "; ".join(f"{group.name} {_from_to(group, 'kl_ratio', digits=2)}" for group in shown)
    title = f"KL ratio r over the epochs: mean and standard deviation over the seeds{left_out}"
    return chart(title, content, lambda: draw_over_epochs(shown, "kl_ratio", "KL ratio r (no unit)"))


def _training_disagreement(groups: Sequence[RunGroup], chart: MakeChart) -> Chart | None:
    mixing, left_out = _drawn(groups, "label_disagreement")
    if not mixing:
        return None
    content = "; ".join(f"{group.name} {_from_to(group, 'label_disagreement', 100)} %" for group in mixing)

    def draw() -> Figure:
        return draw_over_epochs(mixing, "label_disagreement", "label disagreement (%)", 100)

    title = "Label disagreement on the mixed views during training, as counted in the paper"
    return chart(f"{title}{left_out}", content, draw)


def _details(group: RunGroup) -> dict[str, Any]:
    """Show the settings of a group, and the commands and environments of its runs."""
    environments = dict.fromkeys(_environment(run.environment) for run in group.runs)
    return {
        "name": group.name,
        "commands": [f"{run.path}: {_command(run.environment)}" for run in group.runs],
        "environments": environments,
        "settings": group.config.to_toml(),
    }


def _command(environment: Mapping[str, Any]) -> str:
    words, started = environment.get("command"), environment.get("started_at")
    command = shlex.join([words[0].rpartition("/")[2], *words[1:]]) if words else "command not recorded"
    return (
        command if started is None else f"{command} ({time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(started))})"
    )


def _environment(recorded: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in recorded.items() if name not in ("command", "started_at")}
    return "\n".join(f"{name}: {value}" for name, value in facts.items()) or "not recorded"


def _from_to(group: RunGroup, name: str, scale: float = 1.0, digits: int = 1) -> str:
    means = [scale * (value.mean or 0.0) for _, value in group.by_epoch(name)]
    return f"from {means[0]:.{digits}f} to {means[-1]:.{digits}f}" if means else "unknown"


def _describe_errors(curve: ErrorCurve) -> str:
    points = (f"{point.last.mean:.1f} % after {point.epochs}" for point in curve.points if point.last.mean is not None)
    return f"{curve.name} {', '.join(points)} epochs"
