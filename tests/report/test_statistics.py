"""The numbers of the report against values worked out by hand and against scipy's own test."""

from __future__ import annotations

import pytest
from scipy import stats

from glomo_dist.report.statistics import estimate, paired


def test_estimate_by_hand():
    # 1, 2, 3: mean 2, sample variance 1; t(0.975, 2) = 4.302653, so the half width is 4.302653 / sqrt(3)
    got = estimate([1.0, 2.0, 3.0])
    assert (got.n, got.mean, got.sd) == (3, 2.0, 1.0)
    assert got.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert got.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_estimate_says_no_more_than_it_knows():
    assert estimate([]).mean is None
    one = estimate([0.5])
    assert (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.5, None, None, None)
    equal = estimate([0.5, 0.5])
    assert (equal.sd, equal.low, equal.high) == (0, 0.5, 0.5)


def test_paired_by_hand():
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641, two-sided p with 2 degrees of freedom = 0.0742
    got = paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert got.difference.mean == 2 and got.difference.n == 3
    assert got.p == pytest.approx(0.07418, abs=1e-5)


def test_paired_agrees_with_scipy():
    a, b = [0.81, 0.79, 0.84, 0.80, 0.77], [0.78, 0.80, 0.79, 0.78, 0.76]
    expected = stats.ttest_rel(a, b)
    got = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert got.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (got.difference.low, got.difference.high) == pytest.approx((interval.low, interval.high))


def test_paired_uses_common_seeds_only():
    got = paired({0: 0.9, 1: 0.8, 5: 0.1}, {1: 0.7, 0: 0.7, 9: 0.99})
    assert got.difference.n == 2 and got.difference.mean == pytest.approx(0.15)
    assert got.missing == (5, 9)
    nothing = paired({0: 0.9}, {1: 0.8})
    assert nothing.difference.mean is None and nothing.p is None


def test_no_p_value_without_a_spread():
    assert paired({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.7}).p is None  # equal up to rounding
    assert paired({0: 0.7}, {0: 0.6}).p is None
