r"""One scale for three and more policies: Bradley and Terry's model, written as Elo ratings.

.. math:: P(i \text{ beats } j) = \frac{1}{1 + 10^{(R_j - R_i) / 400}}

A tie is half a win. Source: Bradley and Terry 1952; the scale is Elo's, with the first policy at 1000.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.evaluation.length_control import linear_model

BASE = 1000.0
_SCALE = 400 / math.log(10)
_PENALTY = 1e3  # sklearn's C: a policy that never loses gets a high rating, not an infinite one


def elo_ratings(
    results: Mapping[tuple[str, str], Sequence[tuple[Hashable, float]]],
    *,
    num_samples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Ratings with percentile bootstrap intervals over clusters.

    A bootstrap sample draws clusters once for all pairs of policies, so that a hard prompt is hard for all of them.

    Args:
        results: For each compared pair of policies, one ``(cluster, rate)`` per prompt: wins of the first plus half the
            ties, in [0, 1].
        num_samples: Bootstrap samples.
        confidence: Coverage of the intervals.
        seed: Of the bootstrap.

    Returns:
        Ratings by policy, in order of appearance; the first has 1000 and no width.

    Raises:
        ValueError: If there are fewer than two policies, some are not connected by comparisons, or scikit-learn is not
            installed.
    """
    names = list(dict.fromkeys(name for pair in results for name in pair))
    _check_connected(names, list(results))
    pairs = list(results)
    places = {c: i for i, c in enumerate(dict.fromkeys(c for rows in results.values() for c, _ in rows))}
    # wins[k, p, 0]: what the first policy of pair p won in cluster k; [.., 1]: what the second won
    wins = torch.zeros(len(places), len(pairs), 2, dtype=torch.float64)
    for p, pair in enumerate(pairs):
        for cluster, rate in results[pair]:
            wins[places[cluster], p] += torch.tensor([rate, 1 - rate], dtype=torch.float64)
    best = _fit(wins.sum(0), pairs, names)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        _fit(wins[torch.randint(len(places), (len(places),), generator=generator)].sum(0), pairs, names)
        for _ in range(num_samples if len(places) > 1 else 0)
    ]
    tail = (1 - confidence) / 2
    ends = torch.full((2, len(names)), math.nan, dtype=torch.float64)
    if drawn:
        ends = torch.quantile(torch.stack(drawn), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return {name: Interval(float(ends[0, i]), float(best[i]), float(ends[1, i])) for i, name in enumerate(names)}


def _fit(wins: Tensor, pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> Tensor:
    """Ratings ``(len(names),)`` fp64: logistic regression on which policy is first (+1) and which second (-1)."""
    rows = torch.zeros(2 * len(pairs), len(names), dtype=torch.float64)
    for p, (first, second) in enumerate(pairs):
        rows[2 * p : 2 * p + 2, names.index(first)] = 1.0
        rows[2 * p : 2 * p + 2, names.index(second)] = -1.0
    rows[1::2] *= -1  # the second policy's wins, told from its side: every row is won
    weights = wins.flatten()
    # Each row also as a loss of the other side: the regression needs both labels and the likelihood is the same.
    x, y = torch.cat([rows, -rows]), torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))])
    model = linear_model().LogisticRegression(C=_PENALTY, solver="newton-cholesky", fit_intercept=False, tol=1e-8)
    model.fit(x.numpy(), y.numpy(), sample_weight=torch.cat([weights, weights]).numpy() / 2)
    strength = torch.tensor(model.coef_[0], dtype=torch.float64)
    return BASE + _SCALE * (strength - strength[0])


def _check_connected(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    if len(names) < 2:
        raise ValueError("Ratings need at least two policies.")
    near = defaultdict(set)
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    reached, todo = {names[0]}, [names[0]]
    while todo:
        new = near[todo.pop()] - reached
        reached |= new
        todo += new
    lost = [name for name in names if name not in reached]
    if lost:
        raise ValueError(f"Ratings need comparisons that connect all policies; none reaches {lost[0]}.")
