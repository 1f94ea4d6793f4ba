"""Label disagreement on a case that can be worked out on paper, and its interval."""

import math
import random

import numpy as np
import pytest
import torch

from kdcache.analysis.disagreement import MixedSamples, Share, count
from kdcache.views import Batch


def by_hand() -> MixedSamples:
    """Six samples of three classes.

    ====  =====  =======  ====  ==========  =======  ========
    row   label  partner  kept  mix says    teacher  disputed
    ====  =====  =======  ====  ==========  =======  ========
    0     0      1        0.90  0           0        no
    1     0      1        0.25  1           0        yes
    2     2      1        0.50  1 (a tie)   1        no
    3     2      1        0.50  1 (a tie)   2        yes
    4     2      2        0.10  2           0        yes
    5     1      1        1.00  1           1        no
    ====  =====  =======  ====  ==========  =======  ========
    """
    labels, partners = torch.tensor([0, 0, 2, 2, 2, 1]), torch.tensor([1, 1, 1, 1, 2, 1])
    kept = torch.tensor([0.9, 0.25, 0.5, 0.5, 0.1, 1.0])
    batch = Batch(
        epoch=0,
        step=0,
        positions=range(6),
        samples=torch.arange(6),
        labels=labels,
        views=torch.zeros(12, 3, 4, 4, dtype=torch.uint8),
        partner_labels=partners,
        kept=kept,
        lot=torch.zeros(6),
        keys=np.arange(6),
    )
    teacher = 5.0 * torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 0, 1]), 3)
    return MixedSamples(batch.mixed_views(), teacher, labels, partners, batch.mixed_labels(), kept)


def test_the_case_worked_out_by_hand() -> None:
    found = count(by_hand())
    assert (found.overall.count, found.overall.of) == (3, 6)
    assert (found.two_classes.count, found.two_classes.of) == (2, 4)
    assert (found.same_class.count, found.same_class.of) == (1, 2)
    bins = {round(10 * low): (share.count, share.of) for low, _, share in found.by_lambda}
    filled = {place: share for place, share in bins.items() if share != (0, 0)}
    assert filled == {1: (1, 1), 2: (1, 1), 5: (1, 2), 9: (0, 2)}
    assert found.overall.percent == 50.0


def test_the_interval_is_wilsons() -> None:
    # Agresti and Coull's textbook case: 10 of 10 gives 72.2 to 100.
    low, high = Share(10, 10).interval or (0, 0)
    assert low == pytest.approx(72.2467, abs=1e-3)
    assert high == pytest.approx(100.0)
    assert Share(0, 0).interval is None


@pytest.mark.parametrize("share", [0.05, 0.521])
def test_the_interval_covers_the_truth_about_95_times_in_100(share: float) -> None:
    draws, n = 2000, 300
    counts = np.random.Generator(np.random.PCG64(3)).binomial(n, share, draws)
    covered = sum(low <= 100 * share <= high for low, high in (Share(int(k), n).interval or (0, 0) for k in counts))
    assert covered / draws == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws) + 0.01)


def test_figures_do_not_depend_on_the_order_of_samples() -> None:
    samples = by_hand()
    rows = list(range(6))
    random.Random(1).shuffle(rows)
    shuffled = MixedSamples(*(tensor[rows] for tensor in vars(samples).values()))
    assert count(shuffled) == count(samples)
