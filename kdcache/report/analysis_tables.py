"""Tables of analyses and runs, for the terminal, Markdown and the HTML report."""

from __future__ import annotations  # so that what is recorded is shown without torch

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kdcache.analysis.estimates import Proportion
from kdcache.analysis.groups import RunGroup
from kdcache.report.tables import (
    TextTable,
    format_interval,
    format_mean_std,
    format_percent,
    format_whole,
    make_table,
)
from kdcache.run.records import RunRecord

if TYPE_CHECKING:
    from kdcache.analysis.augmentations import AugmentationScore
    from kdcache.analysis.curves import ErrorCurve
    from kdcache.analysis.disagreement import DisagreementReport
    from kdcache.analysis.hardness import Hardness
    from kdcache.analysis.kl_ratio import KLRatioCurve

__all__ = [
    "augmentations_table",
    "classes_table",
    "disagreement_table",
    "errors_table",
    "groups_table",
    "hardness_table",
    "kl_ratio_table",
    "ratios_table",
    "runs_table",
]


def disagreement_table(report: DisagreementReport) -> TextTable:
    """Label disagreement next to the teacher's error on clean images and the paper's number."""
    from kdcache.analysis.disagreement_counts import PAPER_PERCENT

    counts = report.counts
    rows = [
        ("teacher disagrees with the label", counts.overall),
        ("  pairs of different classes", counts.different_classes),
        ("  pairs of the same class", counts.same_class),
        *((f"  lambda {low:.1f} to {high:.1f}", proportion) for low, high, proportion in counts.by_lambda),
        ("disagrees, both clean images correct", counts.despite_both_images_correct),
        ("  as a share of samples with both images correct", counts.given_both_images_correct),
        ("teacher's class is that of one of the images", counts.one_of_two),
        ("  as a share of samples with disagreement", counts.one_of_two_given_disagreement),
        ("label in the teacher's top-5", counts.in_top5),
        ("  as a share of samples with disagreement", counts.in_top5_given_disagreement),
        ("teacher's error on the clean images", report.clean_error),
    ]
    lines = [_proportion_row(name, proportion) for name, proportion in rows]
    lines.append(("disagreement in the paper (ImageNet, ResNet34)", f"{PAPER_PERCENT:.1f} %", "", ""))
    title = f"Label disagreement of {report.teacher} on {report.aug} samples of {report.dataset} ({report.split})"
    return TextTable(title, ("", "share", "95 % interval", "samples"), lines)


def classes_table(report: DisagreementReport, max_rows: int | None = None) -> TextTable:
    """Label disagreement by class, in descending order."""
    by_class = zip(report.class_names, report.counts.by_class, strict=True)
    known = sorted(((name, found) for name, found in by_class if found.total), key=lambda row: -(row[1].percent or 0))
    rows = [_proportion_row(name, proportion) for name, proportion in known[:max_rows]]
    omitted = len(known) - len(rows)
    title = "By class of the mixed label" + (f" ({omitted} classes omitted)" if omitted else "")
    return TextTable(title, ("class", "disagreement", "95 % interval", "samples"), rows)


def _proportion_row(name: str, proportion: Proportion) -> tuple[str, str, str, str]:
    return name, format_percent(proportion), format_interval(proportion), str(proportion.total)


def augmentations_table(teacher: str, scores: Sequence[AugmentationScore]) -> TextTable:
    """Scores of augmentations for a teacher; the best must come first."""

    def gap_to_best(score: AugmentationScore) -> str | None:
        gap = score.gap_to(scores[0])
        return None if gap is None else "{:.6f} ({:.6f})".format(*gap)

    return make_table(
        f"Augmentations for {teacher}, the best first: a lower std of the mean probability is better",
        scores,
        {
            "augmentation": lambda score: score.aug,
            "std of mean probability": lambda score: f"{score.std.value:.6f}" if score.std else None,
            "gap to best (se)": gap_to_best,
            "groups": lambda score: score.groups,
            "mean entropy (nats)": lambda score: f"{score.entropy:.3f}",
            "label disagreement": lambda score: format_percent(score.disagreement),
            "diversity (nats)": lambda score: None if score.diversity is None else f"{score.diversity:.4f}",
            "of images": lambda score: score.images,
        },
    )


def kl_ratio_table(curves: Iterable[KLRatioCurve]) -> TextTable:
    """Mean KL ratio of each group of runs."""
    return make_table(
        "KL ratio r (Equation 3), mean over the steps",
        curves,
        {
            "runs": lambda curve: curve.name,
            "mean (std)": lambda curve: format_mean_std(curve.overall, 3),
            "n": lambda curve: curve.overall.n,
            "steps": lambda curve: curve.steps,
        },
    )


def ratios_table(groups: Iterable[RunGroup]) -> TextTable:
    """Mean over the epochs of the KL ratio of each group of runs."""
    return make_table(
        "KL ratio r (Equation 3), mean over the epochs",
        groups,
        {
            "runs": lambda group: group.name,
            "mean (std)": lambda group: format_mean_std(group.mean_over_epochs("kl_ratio"), 3),
            "n": lambda group: group.mean_over_epochs("kl_ratio").n,
        },
    )


def errors_table(curves: Iterable[ErrorCurve]) -> TextTable:
    """Test error by the total number of epochs."""
    return make_table(
        "Test error by the total number of epochs, mean (std)",
        [(curve, point) for curve in curves for point in curve.points],
        {
            "runs": lambda item: item[0].name,
            "epochs": lambda item: item[1].epochs,
            "error, last epoch (%)": lambda item: format_mean_std(item[1].last),
            "error, best epoch (%)": lambda item: format_mean_std(item[1].best),
            "n": lambda item: item[1].last.n,
        },
    )


def hardness_table(name: str, hardness: Hardness) -> TextTable:
    """Distribution of d over the epochs, and how many hard images stay hard."""
    transitions = zip(hardness.stayed_hard, hardness.became_hard, strict=True)
    changes = [("-", "-"), *((format_percent(stayed), format_percent(became)) for stayed, became in transitions)]
    columns = (hardness.epochs, hardness.low, hardness.median, hardness.high, changes)
    rows = [
        (str(epoch + 1), *(f"{value:.3g}" for value in (low, median, high)), *change)
        for epoch, low, median, high, change in zip(*columns, strict=True)
    ]
    header = ("epoch", "d, 10th percentile", "median", "90th (nats)", "stayed hard", "became hard")
    return TextTable(f"d of x over the epochs of {name}", header, rows)


def groups_table(groups: Iterable[RunGroup]) -> TextTable:
    """Results of each group of runs, over its finished runs."""

    def count(group: RunGroup) -> str:
        unfinished = len(group.runs) - len(group.finished)
        return f"{len(group.finished)}" + (f" (+{unfinished} unfinished)" if unfinished else "")

    return make_table(
        "Results of the finished runs, mean (std) over n; forwards, cache hits and seconds are means per run",
        groups,
        {
            "runs": lambda group: group.name,
            "top-1, last epoch (%)": lambda group: format_mean_std(group.result("last_top1")),
            "top-1, best epoch (%)": lambda group: format_mean_std(group.result("best_top1")),
            "n": count,
            "epochs": lambda group: format_whole(group.result("epochs")),
            "teacher forwards": lambda group: format_whole(group.result("teacher_forwards")),
            "cache hits": lambda group: format_whole(group.result("cache_hits")),
            "seconds": lambda group: format_whole(group.result("seconds")),
            "dataset": lambda group: group.config.dataset,
        },
    )


def runs_table(runs: Iterable[RunRecord]) -> TextTable:
    """State and accuracy of each run."""

    def state(run: RunRecord) -> str:
        return "finished" if run.finished else f"{len(run.metrics)} of {run.config.epochs} epochs"

    def accuracy(run: RunRecord, name: str) -> str | None:
        value = run.result(name)
        return None if value is None else f"{value:.2f}"

    return make_table(
        "Runs",
        runs,
        {
            "run": lambda run: run.path,
            "top-1, last epoch (%)": lambda run: accuracy(run, "last_top1"),
            "top-1, best epoch (%)": lambda run: accuracy(run, "best_top1"),
            "seed": lambda run: run.config.seed,
            "state": state,
        },
    )
