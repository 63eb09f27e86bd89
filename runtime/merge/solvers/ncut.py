"""The solver "ncut": recursive normalised cut.

Papers: Shi and Malik, "Normalized Cuts and Image Segmentation", PAMI 2000; used on a diffusion model's features by
Couairon et al., "DiffCut", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.likeness import profiles, segment_means, unit_rows
from runtime.merge.suppress import suppress
from runtime.merge.threads import one_thread
from runtime.pyramid.config import MOST_ALPHA, MOST_TAU, check_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.merge.aggregate import Aggregation
    from runtime.pyramid.config import MergeConfig

TAU, ALPHA = 0.5, 10.0  # DiffCut's
CUTS = 100  # thresholds tried for each eigenvector
MOST_SEGMENTS = 256  # as many as the merge has anchors; noise would be cut into single tokens, which takes long
DENSE = 128  # tokens; a smaller matrix is decomposed whole, a larger one by Lanczos iterations
TOLERANCE = 1e-5  # of an eigenvalue
SMALLEST_DEGREE = 1e-30
IN_CACHE = 1 << 18  # numbers worked on at a time: 1 MB


@one_thread()
def normalized_cut(
    features: NDArray[Any],
    grid_shape: tuple[int, int],
    *,
    tau: float = TAU,
    alpha: float = ALPHA,
    size: Sequence[int],
) -> NDArray[np.int32]:
    """Segment a frame by recursive normalised cut of its tokens' features.

    A part is cut in two while the value of its best cut, cut/assoc(A) + cut/assoc(B), is below τ. Every pixel then goes
    to the segment whose mean of unit-length features has the largest dot product with the pixel's own, which is
    interpolated bilinearly.

    Args:
        features: float [n, d], one row per token, row-major; also aggregated attention [n, n].
        grid_shape: (h, w) of the tokens, h·w = n.
        tau: τ, above 0 and at most 2. More segments where it is higher.
        alpha: α, above 0: the power of the affinity, which is scaled to [0, 1] first.
        size: (H, W) of the labels.

    Returns:
        int32 [H, W]: the segment of every pixel, numbered by their first tokens. A segment may win no pixel.

    Raises:
        ValueError: if a shape does not fit, a number is out of range, or a feature is a NaN or an infinity.
        ModuleNotFoundError: if scipy is not installed.
    """
    h, w = grid_shape
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != h * w or not features.size:
        raise ValueError(
            f"features: expected [{h * w}, d] for the grid {h}x{w}, found {list(features.shape)}; pass the features of "
            "one frame, a row per token"
        )
    check_number("tau", tau, MOST_TAU)
    check_number("alpha", alpha, MOST_ALPHA)
    unit = unit_rows(features)
    means = segment_means(unit, cut_tokens(affinities(unit, alpha), tau))
    return suppress(np.matmul(means, unit.T), (h, w), (size[0], size[1]))


def solve(
    source: Aggregation, config: MergeConfig, seeds: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The segments of the normalised cut of the maps: their mean maps, and how like these every map is.

    A token's features are the profile of its map, see `runtime.merge.likeness`.

    Args:
        source: aggregated attention, its rows sum to n.
        config: tau and alpha.
        seeds: not used.

    Returns:
        Proposals float32 [P, n] that sum to n, and scores float32 [P, n], the coefficients of a map and a mean map.
    """
    maps = source.full()
    own = profiles(maps, source.shape)
    segments = cut_tokens(affinities(own, config.alpha or ALPHA), config.tau or TAU)
    means = segment_means(maps, segments)
    return means, np.matmul(profiles(means, source.shape), own.T)


def affinities(unit: NDArray[np.float32], alpha: float = ALPHA) -> NDArray[np.float32]:
    """Affinity [n, n] of unit-length rows [n, d]: dot products, scaled to [0, 1] by minimum and maximum, to the α."""
    products = np.matmul(unit, unit.T)
    least, most = products.min(), products.max()
    scale = 1 / (most - least) if most - least > np.float32(1e-6) else np.float32(0)
    if not scale:
        products.fill(1)  # all features are the same
        return products
    step = max(1, IN_CACHE // len(products))
    for start in range(0, len(products), step):
        part = products[start : start + step]
        part -= least
        part *= scale
        np.clip(part, 0, 1, out=part)
        _power(part, alpha)
    return products


def _power(base: NDArray[np.float32], exponent: float) -> None:
    """base ** exponent in place; a whole number by squaring, for `np.power` takes ten times as long."""
    if exponent != int(exponent) or exponent > 64:
        np.power(base, np.float32(exponent), out=base)
        return
    result, square = None, base
    for bit in reversed(f"{int(exponent):b}"):
        if bit == "1":
            result = square.copy() if result is None else np.multiply(result, square, out=result)
        square = square * square
    assert result is not None
    base[...] = result


def cut_tokens(affinity: NDArray[np.float32], tau: float = TAU) -> NDArray[np.intp]:
    """Cut tokens in two, and the parts again, while the normalised cut is below τ.

    `affinity`: float32 [n, n], symmetric, not negative. Returns int [n]: the segment of each token, 0 … K−1, numbered
    by their first tokens; at most 256 segments.
    """
    n = len(affinity)
    segments = np.zeros(n, np.intp)
    waiting, count = [np.arange(n)], 1
    while waiting:
        tokens = waiting.pop(0)
        part = affinity if len(tokens) == n else affinity[np.ix_(tokens, tokens)]
        inside = _best_cut(part, tau) if count < MOST_SEGMENTS else None
        if inside is None:
            segments[tokens] = tokens[0]
        else:
            waiting += [tokens[inside], tokens[~inside]]
            count += 1
    return np.unique(segments, return_inverse=True)[1]


def _best_cut(affinity: NDArray[np.float32], tau: float) -> NDArray[np.bool_] | None:
    """One side of the best of the cuts along the second eigenvector, bool [n]; None where its value is not below τ."""
    n = len(affinity)
    if n < 2:
        return None
    degrees = np.matmul(affinity, np.ones(n, np.float32)).astype(np.float64)
    degrees = np.maximum(degrees, SMALLEST_DEGREE)
    value, vector = _second_eigenvector(affinity, degrees)
    if 1 - value - TOLERANCE >= tau:
        return None  # no cut has a value below this eigenvalue of the Laplacian
    place = vector / np.sqrt(degrees)
    thresholds = np.linspace(0.99 * place.min(), 0.99 * place.max(), CUTS)
    # Tokens between the same two thresholds are on the same side of every cut: their affinities are summed.
    above, interval = np.unique(np.searchsorted(thresholds, place), return_inverse=True)
    count = len(above)
    members = np.zeros((n, count), np.float32)
    members[np.arange(n), interval] = 1
    between = np.matmul(members.T.astype(np.float64), np.matmul(affinity, members))
    # Cut k has the intervals from k on at one side.
    within = np.diagonal(between[::-1, ::-1].cumsum(axis=0).cumsum(axis=1))[::-1][1:]
    inner = np.bincount(interval, degrees, count)[::-1].cumsum()[::-1]
    inner, outer = inner[1:], inner[0] - inner[1:]
    cuts = np.maximum(inner - within, 0)
    values = cuts / inner + cuts / np.maximum(outer, SMALLEST_DEGREE)
    if not len(values) or not values.min() < tau:
        return None
    return np.asarray(interval > values.argmin())


def _second_eigenvector(
    affinity: NDArray[np.float32], degrees: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The second-largest eigenvalue of D^-½ W D^-½, and its vector: the Laplacian's second-smallest is 1 − it."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n = len(affinity)
    root = np.sqrt(degrees)
    inverse, first = (1 / root).astype(np.float32), (root / np.linalg.norm(root)).astype(np.float32)
    if n > DENSE:
        # The first vector is known: its eigenvalue 1 becomes 0, and all others grow by 1, so that they are above it.
        def product(vector: NDArray[Any]) -> NDArray[np.float32]:
            row = np.asarray(vector, np.float32).ravel()
            found = inverse * np.matmul(affinity, inverse * row)
            return np.asarray(found + row - 2 * first * np.float32(np.matmul(first, row)))

        start = np.random.default_rng(0).normal(size=n).astype(np.float32)  # a fixed one: results repeat
        operator = LinearOperator((n, n), matvec=product, dtype=np.float32)
        try:
            values, vectors = eigsh(operator, 1, which="LA", tol=TOLERANCE, v0=start, maxiter=50)
            return float(values[0]) - 1, vectors[:, 0].astype(np.float64)
        except ArpackNoConvergence:
            pass  # eigenvalues too near each other
    whole = affinity * inverse[:, None] * inverse - 2 * np.outer(first, first)
    values, vectors = eigh(whole.astype(np.float64), subset_by_index=[n - 1, n - 1])
    if not len(values):  # LAPACK finds none where all are the same, as with a high power of the affinity
        values, vectors = eigh(whole.astype(np.float64))
    return float(values[-1]), vectors[:, -1]
