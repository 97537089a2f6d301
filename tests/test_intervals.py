"""Intervals over a few repetitions hold the truth as often as they say, and refuse what cannot have one."""

import numpy as np
import pytest
from scipy import stats

from lib import intervals


def test_student_is_scipys_interval_of_the_mean():
    values = np.array([0.3, 1.2, -0.4, 0.8, 0.1])
    mean, low, high = intervals.student(values, level=0.9)
    expected = stats.t.interval(0.9, 4, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([mean, low, high], [values.mean(), *expected])


@pytest.mark.parametrize("level", [0.95, 0.998])
def test_student_covers_the_mean_of_five_repetitions_as_often_as_it_says(level):
    generator = np.random.default_rng(1)
    ends = [intervals.student(generator.normal(2.0, 3.0, size=5), level=level)[1:] for _ in range(2_000)]
    covered = sum(low <= 2.0 <= high for low, high in ends)
    assert stats.binomtest(covered, 2_000, level).pvalue > 1e-3


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], []])
def test_student_refuses_what_has_no_spread(values):
    with pytest.raises(ValueError, match="at least two repetitions"):
        intervals.student(np.array(values))
