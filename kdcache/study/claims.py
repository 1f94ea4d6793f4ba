"""Claims about the rows of a study, tested over seeds.

A test compares a weighted sum of rows with a bound, seed by seed. Students of one seed see the same views and, if they
have the same network, start from the same weights, so differences within a seed vary less than the accuracies do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdcache.study.intervals import Interval, mean_interval

__all__ = ["Claim", "Decision", "Hypothesis", "TestResult", "combine", "evaluate_claim", "evaluate_hypothesis"]

Decision = Literal["supported", "refuted", "undecided"]


class Hypothesis(BaseModel):
    """A weighted sum of rows is above or below a bound, in points of top-1 accuracy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sum: Annotated[dict[str, float], Field(min_length=1)]
    """Weight of each row."""
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "Hypothesis":
        if (self.above is None) == (self.below is None):
            raise ValueError("one of above and below")
        return self

    def __str__(self) -> str:
        terms = " ".join(f"{'-' if weight < 0 else '+'} {_factor(weight)}({row})" for row, weight in self.sum.items())
        bound = f"> {self.above:g}" if self.above is not None else f"< {self.below:g}"
        return f"{terms.removeprefix('+ ')} {bound}"


def _factor(weight: float) -> str:
    return "" if abs(weight) == 1 else f"{abs(weight):g} "


class Claim(BaseModel):
    """A statement that is supported if all of its hypotheses are.

    With ``test_after_seeds`` it is tested after each of these numbers of seeds in turn, until a test decides it (a
    group-sequential design); seeds that come after the decision do not change it. ``confidence_level`` is that of each
    single interval, so repeated tests need a higher one than the claim as a whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    statement: str
    tests: Annotated[tuple[Hypothesis, ...], Field(min_length=1)]
    test_after_seeds: tuple[Annotated[int, Field(ge=2)], ...] = ()
    confidence_level: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @property
    def rows(self) -> set[str]:
        """Names of the rows that the claim is about."""
        return {name for test in self.tests for name in test.sum}


@dataclass(frozen=True)
class TestResult:
    """A tested hypothesis: the interval of the mean over seeds, ``None`` if it is not estimable, and the decision."""

    __test__ = False  # not a test case for pytest

    hypothesis: Hypothesis
    interval: Interval | None
    decision: Decision


Accuracies = Mapping[str, Mapping[int, float]]
"""Top-1 accuracy in percent of each row and seed."""


def evaluate_hypothesis(hypothesis: Hypothesis, accuracies: Accuracies, confidence_level: float = 0.95) -> TestResult:
    """Test a hypothesis on the seeds that all of its rows have."""
    seeds = set.intersection(*(set(accuracies.get(row, {})) for row in hypothesis.sum))
    sums = [sum(weight * accuracies[row][seed] for row, weight in hypothesis.sum.items()) for seed in sorted(seeds)]
    interval = mean_interval(sums, confidence_level)
    if interval is None:
        return TestResult(hypothesis, None, "undecided")
    if hypothesis.above is not None:
        supported, refuted = interval.low > hypothesis.above, interval.high < hypothesis.above
    else:
        assert hypothesis.below is not None
        supported, refuted = interval.high < hypothesis.below, interval.low > hypothesis.below
    return TestResult(hypothesis, interval, "supported" if supported else "refuted" if refuted else "undecided")


def evaluate_claim(claim: Claim, accuracies: Accuracies) -> tuple[tuple[TestResult, ...], Decision]:
    """Test a claim.

    Returns
    -------
    results : tuple of TestResult
        Of the tests that decided the claim, or of the last ones.
    decision : Decision
        ``undecided`` as long as seeds of the first test are missing.
    """
    numbers: Sequence[int | None] = claim.test_after_seeds or [None]
    for number in numbers:
        used = {
            row: {seed: value for seed, value in accuracies.get(row, {}).items() if number is None or seed < number}
            for row in claim.rows
        }
        results = tuple(evaluate_hypothesis(test, used, claim.confidence_level) for test in claim.tests)
        complete = number is None or all(len(by_seed) == number for by_seed in used.values())
        decision = combine(results) if complete else "undecided"
        if decision != "undecided" or not complete:
            break
    return results, decision


def combine(results: Sequence[TestResult]) -> Decision:
    """Combine the decisions about a claim's hypotheses into one about the claim."""
    decisions = {result.decision for result in results}
    if "refuted" in decisions:
        return "refuted"
    return "undecided" if "undecided" in decisions else "supported"
