"""The interval of a share of runs, and a test of two treatments of the same runs."""

from __future__ import annotations

from math import comb, sqrt

Z95 = 1.959963984540054  # of the normal distribution, two-sided


def wilson(hits: int, runs: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, Probable inference, JASA 22, 1927)."""
    if not 0 <= hits <= runs:
        raise ValueError(f"{hits} hits of {runs} runs; expected no fewer than 0 and no more than all")
    if not runs:
        return 0.0, 1.0
    share, square = hits / runs, Z95**2
    middle = (share + square / (2 * runs)) / (1 + square / runs)
    half = Z95 / (1 + square / runs) * sqrt(share * (1 - share) / runs + square / (4 * runs**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(hits: int, runs: int) -> str:
    """The share with its interval, in percent."""
    if not runs:
        return "-"
    low, high = wilson(hits, runs)
    return f"{hits / runs:.0%} ({low:.0%}-{high:.0%}, n={runs})"


def sign_test(better: int, worse: int) -> float:
    """Two-sided chance of a split at least as uneven among the pairs that differ (McNemar's exact test)."""
    pairs, fewer = better + worse, min(better, worse)
    tail = sum(comb(pairs, k) for k in range(fewer + 1)) / 2**pairs
    return min(1.0, 2 * tail)
