"""Fewer dimensions for vectors by linear maps: principal components, and the rotation of one set of vectors onto another.

Arrays in, arrays out; fitted in float64 with scikit-learn and scipy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIT_ROWS = 20_000  # enough for the directions of some thousand dimensions; more would only cost memory


@dataclass(frozen=True)
class Components:
    """Principal components of vectors `[n, d]`.

    mean: `[d]`; directions: `[d, k]`, orthonormal columns, the one of most variance first; variance: share of the variance
    along them, 0 to 1.
    """

    mean: np.ndarray
    directions: np.ndarray
    variance: float


def fit_rows(count: int, most: int = FIT_ROWS) -> np.ndarray:
    """Row numbers to fit on, ascending: all of `count`, or `most` of them, always the same draw."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def principal_components(vectors: np.ndarray, most: int) -> Components:
    """The `most` directions of largest variance, `vectors` `[n, d]`; fewer where the data has fewer: min(most, d, n - 1).

    ValueError for less than two vectors, or when all are equal.
    """
    from sklearn.decomposition import PCA

    rows, width = vectors.shape
    if rows < 2 or not np.ptp(vectors, axis=0).any():
        raise ValueError(f"principal components need at least two different vectors, and there are {rows} rows")
    exact = "covariance_eigh" if rows > width else "full"
    fitted = PCA(n_components=min(most, width, rows - 1), svd_solver=exact).fit(vectors.astype(np.float64))
    return Components(fitted.mean_, fitted.components_.T, float(fitted.explained_variance_ratio_.sum()))


def retained_energy(vectors: np.ndarray, matrix: np.ndarray) -> float:
    """Share of the squared length of `vectors` `[n, d]` that is left after `vectors @ matrix`, without centring."""
    return float(np.square(vectors @ matrix).sum() / np.square(vectors).sum())


def rotation_onto(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The orthogonal `[k, k]` matrix R under which the mean cosine of `source @ R` and `target`, both `[n, k]`, is largest.

    Rows are scaled to length one, then ||source R - target||_F is least (orthogonal Procrustes, Schönemann 1966): the same
    thing, since rotated unit vectors stay unit vectors. A row of zeros has no say.
    """
    from scipy.linalg import orthogonal_procrustes

    return np.asarray(orthogonal_procrustes(_unit(source), _unit(target))[0])


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
