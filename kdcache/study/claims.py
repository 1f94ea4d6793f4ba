"""Claims about the rows of a study, tested over its seeds.

A test compares a weighted sum of rows with a bound, seed by seed: students of one seed had the same views and, of one
network, the same initial weights, so their differences vary less than they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdcache.study.compare import Interval, interval_of_mean

__all__ = ["Claim", "Contrast", "Found", "Verdict", "decide", "judge", "verdict"]

Verdict = Literal["held", "not held", "undecided"]


class Contrast(BaseModel):
    """A sum of rows, each with its weight, that is said to lie above or below a bound, in points of top-1 accuracy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: Annotated[dict[str, float], Field(min_length=1)]
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "Contrast":
        if (self.above is None) == (self.below is None):
            raise ValueError("one of above and below")
        return self

    @property
    def words(self) -> str:
        """The test for people: ``KD, long - KD > 0``."""
        terms = " ".join(f"{'-' if weight < 0 else '+'} {_weight(weight)}({row})" for row, weight in self.of.items())
        bound = f"> {self.above:g}" if self.above is not None else f"< {self.below:g}"
        return f"{terms.removeprefix('+ ')} {bound}"


def _weight(weight: float) -> str:
    return "" if abs(weight) == 1 else f"{abs(weight):g} "


class Claim(BaseModel):
    """What is claimed: it holds where all of its tests do.

    With `looks`, numbers of seeds, it is judged at each of them in turn, until one decides: later seeds change nothing.
    The `level` is that of the intervals, which several looks make less than that of the claim.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    says: str
    tests: Annotated[tuple[Contrast, ...], Field(min_length=1)]
    looks: tuple[Annotated[int, Field(ge=2)], ...] = ()
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @property
    def rows(self) -> set[str]:
        """Names of the rows that it is about."""
        return {name for test in self.tests for name in test.of}


@dataclass(frozen=True)
class Found:
    """A test and what came out: the mean of the sum over the seeds with its interval, ``None`` of fewer than two."""

    test: Contrast
    interval: Interval | None
    verdict: Verdict


def judge(test: Contrast, accuracy: Mapping[str, Mapping[int, float]], level: float = 0.95) -> Found:
    """Carry a test out on the seeds that all of its rows have.

    Parameters
    ----------
    test : Contrast
    accuracy : mapping of str to mapping of int to float
        Of each row and seed, in percent.
    level : float
        Of the interval.
    """
    seeds = set.intersection(*(set(accuracy.get(row, {})) for row in test.of))
    sums = [sum(weight * accuracy[row][seed] for row, weight in test.of.items()) for seed in sorted(seeds)]
    interval = interval_of_mean(sums, level)
    if interval is None:
        return Found(test, None, "undecided")
    if test.above is not None:
        inside, outside = interval.low > test.above, interval.high < test.above
    else:
        assert test.below is not None
        inside, outside = interval.high < test.below, interval.low > test.below
    return Found(test, interval, "held" if inside else "not held" if outside else "undecided")


def decide(claim: Claim, accuracy: Mapping[str, Mapping[int, float]]) -> tuple[tuple[Found, ...], Verdict]:
    """Judge a claim: what its tests found at the look that decided it, or at the last one, and the verdict.

    Parameters
    ----------
    claim : Claim
    accuracy : mapping of str to mapping of int to float
        Of each row and seed, in percent. Before all seeds of the first look are there, nothing is decided.
    """
    looks: Sequence[int | None] = claim.looks or [None]
    for look in looks:
        seen = {
            row: {seed: value for seed, value in accuracy.get(row, {}).items() if look is None or seed < look}
            for row in claim.rows
        }
        found = tuple(judge(test, seen, claim.level) for test in claim.tests)
        whole = look is None or all(len(by_seed) == look for by_seed in seen.values())
        stands = verdict(found) if whole else "undecided"
        if stands != "undecided" or not whole:
            break
    return found, stands


def verdict(found: Sequence[Found]) -> Verdict:
    """Say what the tests of a claim come to together."""
    verdicts = {one.verdict for one in found}
    if "not held" in verdicts:
        return "not held"
    return "undecided" if "undecided" in verdicts else "held"
