"""The figures of the cross-check, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from scapedist.analysis import agreement as maths


def test_agreement_is_scikit_learns_r2():
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(200, 3)) * [4, 2, 1]
    found = exact + rng.normal(size=(200, 3)) * 0.1
    figures = maths.agreement(found, exact)
    np.testing.assert_allclose(figures["r2"], r2_score(exact, found, multioutput="raw_values"))
    total = np.sqrt(exact.var(0).sum())
    norms = np.linalg.norm(found - exact, axis=1) / total
    assert figures["relative_error"] == pytest.approx(np.sqrt((norms**2).mean()))
    assert figures["error_quantiles"] == pytest.approx(np.quantile(norms, maths.QUANTILES))
    assert np.shape(figures["component_error_quantiles"]) == (3, 4)
    assert maths.agreement(exact, exact)["r2"] == [1, 1, 1]


def test_neighbours_kept():
    line = np.arange(30.0)[:, None]
    assert maths.neighbour_overlap(line, line, k=2) == 1
    shuffled = np.random.default_rng(0).permutation(30).astype(float)[:, None]
    assert maths.neighbour_overlap(shuffled, line, k=2) < 0.4
    assert maths.neighbour_overlap(line[:1], line[:1]) is None


def test_worst_and_by_group():
    error = np.array([1.0, 3.0, 2.0])
    assert maths.worst(error, np.array([10, 11, 12]), 2) == [
        {"particle": 11, "error": 3.0},
        {"particle": 12, "error": 2.0},
    ]
    assert maths.by_group(error, np.array([0, 2, 2]), 4) == [
        1.0,
        None,
        pytest.approx(np.sqrt(6.5)),
        None,
    ]
