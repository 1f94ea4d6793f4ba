"""What analyses found, laid out in rows: the same for the terminal, for Markdown and for the report's page."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kdcache.analysis.augmentations import AugmentationScore
from kdcache.analysis.curves import ErrorCurve
from kdcache.analysis.disagreement import DisagreementReport
from kdcache.analysis.disagreement_counts import PAPER_PERCENT
from kdcache.analysis.estimates import MeanStd, Proportion
from kdcache.analysis.groups import RunGroup
from kdcache.analysis.hardness import Hardness
from kdcache.analysis.kl_ratio import RatioCurve
from kdcache.run.records import RunRecord

__all__ = [
    "Sheet",
    "augmentations_sheet",
    "classes_sheet",
    "disagreement_sheet",
    "errors_sheet",
    "hardness_sheet",
    "markdown",
    "mean_and_std",
    "ratios_sheet",
    "runs_sheet",
    "summary_sheet",
]


class Sheet(NamedTuple):
    """A table: the first column holds words, the others figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def disagreement_sheet(report: DisagreementReport) -> Sheet:
    """Lay out label disagreement beside the teacher's clean error and the paper's figure."""
    found = report.counts
    rows = [
        ("label disputed, all samples", found.overall),
        ("  pairs of two classes", found.different_classes),
        ("  pairs of one class", found.same_class),
        *((f"  lambda {low:.1f} to {high:.1f}", share) for low, high, share in found.by_lambda),
        ("disputed although right on both images", found.despite_correct),
        ("  of the samples on both of which it is right", found.given_correct),
        ("answer is the class of one of the two images", found.one_of_two),
        ("  of the disputed samples", found.one_of_two_given_disagreement),
        ("label of the larger part is in the top-5", found.in_top5),
        ("  of the disputed samples", found.in_top5_given_disagreement),
        ("teacher's error on the clean images", report.clean_error),
    ]
    lines = [(name, _percent(share), _interval(share), str(share.total)) for name, share in rows]
    lines.append(("the paper's disagreement (ImageNet, ResNet34)", f"{PAPER_PERCENT:.1f} %", "", ""))
    title = f"Label disagreement of {report.teacher} on {report.aug} samples of {report.dataset} ({report.split})"
    return Sheet(title, ("the teacher's view of the label", "share", "95 % interval", "samples"), lines)


def classes_sheet(report: DisagreementReport, most: int | None = None) -> Sheet:
    """Lay out label disagreement by class, the most disputed first, of all classes or of so many."""
    shares = zip(report.class_names, report.counts.by_class, strict=True)
    known = sorted(((name, share) for name, share in shares if share.total), key=lambda item: -(item[1].percent or 0))
    lines = [(name, _percent(share), _interval(share), str(share.total)) for name, share in known[:most]]
    left = len(known) - len(lines)
    title = "By class of the larger part" + (f" ({left} classes left out)" if left else "")
    return Sheet(title, ("class", "disputed", "95 % interval", "samples"), lines)


def augmentations_sheet(teacher: str, scores: Sequence[AugmentationScore]) -> Sheet:
    """Lay out what a teacher says of augmentations, the best first."""
    lines = [
        (
            one.aug,
            f"{one.std.value:.6f}" if one.std else "-",
            _behind(one.gap_to(scores[0])),
            str(one.groups),
            f"{one.entropy:.3f}",
            _percent(one.disagreement),
            "-" if one.diversity is None else f"{one.diversity:.4f}",
            str(one.images),
        )
        for one in scores
    ]
    head = (
        *("augmentation", "std of mean probability", "behind the first (se)", "groups", "mean entropy (nats)"),
        *("labels disputed", "diversity (nats)", "of images"),
    )
    return Sheet(f"Augmentations for {teacher}, the best first: a lower std of the mean probability", head, lines)


def ratios_sheet(curves: Iterable[RatioCurve]) -> Sheet:
    """Lay out the mean KL ratio of each group of runs."""
    lines = [(curve.name, mean_and_std(curve.overall, 3), str(curve.overall.n), str(curve.steps)) for curve in curves]
    return Sheet("KL ratio r (Equation 3), mean over the steps", ("runs", "mean (std)", "n", "steps"), lines)


def errors_sheet(curves: Iterable[ErrorCurve]) -> Sheet:
    """Lay out the test error against the total number of epochs."""
    lines = [
        (curve.name, str(point.epochs), str(point.last.n), mean_and_std(point.last), mean_and_std(point.best))
        for curve in curves
        for point in curve.points
    ]
    head = ("runs", "epochs", "n", "error, last (%)", "error, best (%)")
    return Sheet("Test error against the total number of epochs, mean (std)", head, lines)


def hardness_sheet(name: str, found: Hardness) -> Sheet:
    """Lay out how d develops and how many images stay hard."""
    lines = []
    stayed, forgotten = ((None, *shares) for shares in (found.stayed, found.became))
    columns = (found.epochs, found.low, found.median, found.high, stayed, forgotten)
    for epoch, low, median, high, stay, lapse in zip(*columns, strict=True):
        shares = ("-" if share is None else _percent(share) for share in (stay, lapse))
        lines.append((str(epoch + 1), f"{low:.3g}", f"{median:.3g}", f"{high:.3g}", *shares))
    head = ("epoch", "d, 10th percentile", "median", "90th (nats)", "stayed hard", "became hard")
    return Sheet(f"d of x over the epochs of {name}", head, lines)


def summary_sheet(groups: Iterable[RunGroup]) -> Sheet:
    """Lay out the outcome of each group of runs."""
    lines = []
    for group in groups:
        last, best, asked, answered, seconds = (
            group.result(name) for name in ("last_top1", "best_top1", "teacher_forwards", "cache_hits", "seconds")
        )
        unfinished = len(group.runs) - len(group.finished)
        runs = f"{len(group.finished)}" + (f" (+{unfinished} unfinished)" if unfinished else "")
        figures = (mean_and_std(last), mean_and_std(best), _whole(asked), _whole(answered), _whole(seconds))
        epochs = group.result("epochs")
        lines.append((group.name, _whole(epochs), runs, *figures, group.config.dataset))
    head = (
        *("runs", "epochs", "n", "top-1, last (%)", "top-1, best (%)"),
        *("questions asked", "answered from the store", "seconds", "dataset"),
    )
    return Sheet("Outcome of the finished runs, mean (std) over n; questions and seconds: mean of a run", head, lines)


def runs_sheet(runs: Iterable[RunRecord]) -> Sheet:
    """Lay out each run by itself."""
    lines = []
    for run in runs:
        last, best = (run.result(name) for name in ("last_top1", "best_top1"))
        state = "finished" if run.finished else f"{len(run.metrics)} of {run.config.epochs} epochs"
        figures = ("-" if value is None else f"{value:.2f}" for value in (last, best))
        lines.append((str(run.path), str(run.config.seed), state, *figures))
    return Sheet("The runs", ("run", "seed", "state", "top-1, last (%)", "top-1, best (%)"), lines)


def markdown(sheet: Sheet) -> str:
    """Write a table as Markdown has them, with its title as a heading."""
    lines = [sheet.head, ["---", *["---:"] * (len(sheet.head) - 1)], *sheet.rows]
    return "\n".join(
        [f"## {_escaped(sheet.title)}", "", *("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)]
    )


def _escaped(text: str) -> str:
    for character in "\\|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def mean_and_std(figure: MeanStd, digits: int = 2) -> str:
    """Write a figure as tables have it: ``75.59 (0.22)``."""
    if figure.mean is None:
        return "-"
    return f"{figure.mean:.{digits}f}" + ("" if figure.std is None else f" ({figure.std:.{digits}f})")


def _behind(difference: tuple[float, float] | None) -> str:
    return "-" if difference is None else "{:.6f} ({:.6f})".format(*difference)


def _whole(figure: MeanStd) -> str:
    return "-" if figure.mean is None else f"{figure.mean:.0f}"


def _percent(share: Proportion) -> str:
    return "-" if share.percent is None else f"{share.percent:.1f} %"


def _interval(share: Proportion) -> str:
    return "-" if share.interval is None else "{:.1f} to {:.1f}".format(*share.interval)
