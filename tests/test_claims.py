"""Claims of a study: intervals, hypotheses, and when they are tested."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdcache.study.claims import Claim, Hypothesis, combine, evaluate_claim, evaluate_hypothesis
from kdcache.study.intervals import mean_difference_interval, mean_interval


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12), st.sampled_from([0.9, 0.95, 0.99]))
def test_an_interval_is_that_of_students_t(values: list[float], level: float) -> None:
    found = mean_interval(values, level)
    if max(values) - min(values) < 1e-9:
        assert found is None
        return
    assert found is not None
    error = statistics.stdev(values) / len(values) ** 0.5
    low, high = stats.t.interval(level, len(values) - 1)
    assert found.low == pytest.approx(found.mean + low * error, abs=1e-9)
    assert found.high == pytest.approx(found.mean + high * error, abs=1e-9)


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        (Hypothesis(sum={"a": 1, "b": -1}, above=0), "supported"),
        (Hypothesis(sum={"b": 1, "a": -1}, above=0), "refuted"),
        (Hypothesis(sum={"a": 1, "b": -1}, below=2), "supported"),
        (Hypothesis(sum={"a": 1, "b": -1}, below=0.5), "refuted"),
        (Hypothesis(sum={"a": 1, "b": -1}, above=1), "undecided"),
        (Hypothesis(sum={"a": 1, "b": -1, "c": -1, "d": 1}, above=0), "undecided"),  # d has only one of the seeds
        (Hypothesis(sum={"a": 1, "none": -1}, above=0), "undecided"),
    ],
)
def test_a_hypothesis_is_tested_by_its_interval_over_common_seeds(hypothesis: Hypothesis, expected: str) -> None:
    accuracies = {
        "a": {0: 81.0, 1: 82.1, 2: 83.0},
        "b": {0: 80.0, 1: 81.0, 2: 82.1, 3: 0.0},
        "c": {0: 1.0},
        "d": {0: 1.0},
    }
    assert evaluate_hypothesis(hypothesis, accuracies).decision == expected


def test_equal_differences_have_no_interval_and_support_nothing() -> None:
    left, right = [71.2, 72.3], [70.1, 71.2]  # 1.1 twice, but for rounding
    accuracies = {"a": dict(enumerate(left)), "b": dict(enumerate(right))}
    result = evaluate_hypothesis(Hypothesis(sum={"a": 1, "b": -1}, above=0), accuracies)
    assert (result.interval, result.decision) == (None, "undecided")
    assert mean_difference_interval([71.2, 71.2], [70.1, 70.1]) is None
    assert mean_difference_interval([71.2, 71.3], [70.1, 70.3]) is not None


def test_a_claim_is_tested_at_its_own_confidence_level() -> None:
    accuracies = {"a": {0: 81.0, 1: 82.0, 2: 80.2}, "b": dict.fromkeys(range(3), 80.0)}
    better = Hypothesis(sum={"a": 1, "b": -1}, above=-0.5)  # the mean is 1.07, its standard error 0.52
    decisions = [
        evaluate_claim(Claim(statement="better", tests=(better,), confidence_level=level), accuracies)[1]
        for level in (0.8, 0.99)
    ]
    assert decisions == ["supported", "undecided"]


def test_a_claim_is_not_tested_while_a_seed_is_missing() -> None:
    accuracies = {"a": {0: 81.0, 1: 81.1, 3: 81.2}, "b": dict.fromkeys(range(4), 80.0)}
    better = Hypothesis(sum={"a": 1, "b": -1}, above=0)
    claim = Claim(statement="better", tests=(better,), test_after_seeds=(4,))
    assert evaluate_claim(claim, accuracies)[1] == "undecided"
    accuracies["a"][2] = 81.0
    assert evaluate_claim(claim, accuracies)[1] == "supported"


def test_a_claim_is_supported_if_all_of_its_hypotheses_are() -> None:
    accuracies = {"a": {0: 81.0, 1: 82.1}, "b": {0: 80.0, 1: 81.0}}
    supported, refuted, undecided = (
        evaluate_hypothesis(Hypothesis(sum={"a": 1, "b": -1}, **bound), accuracies)
        for bound in ({"above": 0}, {"below": 0}, {"above": 1})
    )
    assert combine([supported]) == "supported"
    assert combine([supported, undecided]) == "undecided"
    assert combine([supported, undecided, refuted]) == "refuted"
    assert str(supported.hypothesis) == "(a) - (b) > 0"


@pytest.mark.parametrize(
    ("seeds", "expected", "n"),
    [
        (1, "undecided", None),  # before the first test
        (2, "undecided", 2),
        (3, "undecided", 3),  # between the tests
        (4, "supported", 4),
        (6, "supported", 4),  # later seeds change nothing
    ],
)
def test_a_claim_is_only_tested_after_the_given_numbers_of_seeds(seeds: int, expected: str, n: int | None) -> None:
    better = [2.0, 0.9, 1.1, 1.0, -9.0, -9.0]
    accuracies = {"a": {seed: 80 + better[seed] for seed in range(seeds)}, "b": dict.fromkeys(range(seeds), 80.0)}
    claim = Claim(statement="better", tests=(Hypothesis(sum={"a": 1, "b": -1}, above=0),), test_after_seeds=(2, 4))
    (result,), decision = evaluate_claim(claim, accuracies)
    assert decision == expected
    assert (result.interval.n if result.interval else None) == n
