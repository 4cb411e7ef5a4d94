"""scikit-learn's array API estimators give the same results on our arrays as on numpy's.

SciPy reads SCIPY_ARRAY_API when it is imported, so this runs in its own process.
"""

from __future__ import annotations

import pytest
from child import said

pytest.importorskip("sklearn")

SCRIPT = """
import numpy as np
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
import minigrad.array_api as xp

random = np.random.default_rng(3)
points = random.standard_normal((60, 5)) @ random.standard_normal((5, 5))
labels = (points[:, 0] + 0.5 * random.standard_normal(60) > 0).astype(np.int64)
ours, marks = xp.asarray(points), xp.asarray(labels)

def same(one, other):
    assert isinstance(one, xp.Array), type(one)
    np.testing.assert_allclose(np.asarray(one), other, rtol=1e-8, atol=1e-10)

with config_context(array_api_dispatch=True):
    for solver in ("full", "covariance_eigh"):
        ours_fit = PCA(n_components=3, svd_solver=solver).fit(ours)
        theirs = PCA(n_components=3, svd_solver=solver).fit(points)
        same(ours_fit.explained_variance_, theirs.explained_variance_)
        same(ours_fit.components_, theirs.components_)
        same(ours_fit.transform(ours), theirs.transform(points))
        same(ours_fit.inverse_transform(ours_fit.transform(ours)),
             theirs.inverse_transform(theirs.transform(points)))
    ours_fit = LinearDiscriminantAnalysis().fit(ours, marks)
    theirs = LinearDiscriminantAnalysis().fit(points, labels)
    same(ours_fit.predict(ours), theirs.predict(points))
    same(ours_fit.coef_, theirs.coef_)
    same(ours_fit.predict_proba(ours), theirs.predict_proba(points))
    # an axis of discrimination has no sign
    same(xp.abs(ours_fit.transform(ours)), np.abs(theirs.transform(points)))
print("fine")
"""


def test_pca_and_linear_discriminant_analysis():
    assert said("-c", SCRIPT, SCIPY_ARRAY_API="1") == "fine\n"
