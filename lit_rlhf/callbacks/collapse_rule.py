"""The joint rule that tells a collapse from healthy learning: plain Python, no Lightning, replayable on a table.

A collapse moves several monitors together, away from where the run began. Each monitor gives a *factor*, how far the
smoothed value is from the run's own baseline in its bad direction, and the factors are multiplied:

    index = (KL - baseline KL) x length ratio x perplexity ratio x tail ratio x repetition ratio

in nats per token. The length ratio counts a change either way: a policy may run into long patterns or into one short
answer. Repetition is seen within responses and across prompts, and the larger ratio of the two counts. A factor counts
only when its deviation is significant against the baseline's robust scale; otherwise it is 1. A lone KL rise (a policy
that moved and is fine) or a lone length rise (a reward for completeness) stays small; KL and length *together* do not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression, median
from typing import Any

# Signals and their bad direction; 0 is either. `distinct` is distinct-4: it falls when responses repeat themselves or
# each other, but does not see short ones; `variety` falls when responses to different prompts have n-grams in common.
DIRECTIONS: dict[str, int] = {"kl": 1, "length": 0, "perplexity": -1, "tail": 1, "distinct": -1, "variety": -1}
REPETITION = ("distinct", "variety")  # one fault seen twice: only the larger factor of the two counts
ANCHOR = "kl"
# The metric that each signal is.
METRICS: dict[str, str] = {
    "kl": "rollout/kl",
    "length": "rollout/response_length",
    "perplexity": "rollout/perplexity",
    "tail": "rollout/score_upper_tail",
    "distinct": "rollout/distinct_4",
    "variety": "rollout/variety",
}
# Least robust scale: of the KL in nats per token, for its baseline is near zero; of the others a share of the baseline.
# Keeps a constant or lucky baseline from making every ripple significant. The tail is a ratio of a few scores: noisy.
FLOORS: dict[str, float] = {
    "kl": 0.005,
    "length": 0.05,
    "perplexity": 0.05,
    "tail": 0.25,
    "distinct": 0.05,
    "variety": 0.05,
}
_NORMAL = 1.4826  # MAD of a normal distribution times this is its standard deviation


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One signal at one iteration.

    Attributes:
        value: Median of the last few values.
        baseline: Median of the baseline.
        deviation: Distance in the bad direction, or in either where both are bad, in robust scales of the baseline.
        factor: What it multiplies the index by; for KL, nats per token above the baseline.
        since: First iteration of the unbroken run in which it was significant; -1 when it is not.
    """

    value: float
    baseline: float
    deviation: float
    factor: float
    since: int


@dataclass(frozen=True, kw_only=True)
class Flag:
    """The rule's verdict.

    Attributes:
        iteration: Where it was raised.
        since: Where the rule began to hold: the onset.
        index: The joint index, nats per token; infinity for a flag raised by non-finite values.
        forecast: The index ``horizon`` iterations ahead, which the rule judged; with ``horizon`` 0 the index.
        fired: The significant signals, KL first.
        readings: Every signal's reading.
    """

    iteration: int
    since: int
    index: float
    forecast: float
    fired: tuple[str, ...]
    readings: Mapping[str, Reading]

    def describe(self) -> str:
        """One line for people."""
        known = {name: f"{name} {r.value:.3g} (was {r.baseline:.3g})" for name, r in self.readings.items()}
        signals = ", ".join(known.get(name, name) for name in self.fired)
        ahead = "" if self.forecast == self.index else f", heading for {self.forecast:.3g},"
        return f"{signals}; index {self.index:.3g}{ahead} since iteration {self.since}"

    def as_dict(self) -> dict[str, Any]:
        """Primitives, for the event log."""
        return {**asdict(self), "fired": list(self.fired)}


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """The constants.

    Attributes:
        threshold: Index above which the rule holds, nats per token.
        baseline_iterations: First iterations that make the baseline.
        baseline_kl: Of these, the ones whose KL is further above the first one's are left out, nats per token: a policy
            that has moved by then is no baseline, and a length that falls from the start would be taken for noise.
        smoothing: Iterations whose median stands for a signal now; more than 1 costs as many iterations of warning.
        tail_smoothing: The same for the upper tail, a ratio of a few scores that jumps from one rollout to the next.
        patience: Consecutive iterations the rule must hold, so that one outlier does nothing; for non-finite values
            as well.
        trend: Iterations whose index a line is put through.
        horizon: Iterations ahead at which that line must reach ``threshold``; 0 judges the index itself.
        min_deviation: Robust scales from which a deviation is significant.
        max_factor: Largest factor of a signal other than KL.
        cooldown: Iterations after a flag in which no other is raised.

    Raises:
        ValueError: If a count is under 1 (``trend`` under 3, ``horizon`` under 0) or another constant is not positive.
    """

    threshold: float = 0.18
    baseline_iterations: int = 5
    baseline_kl: float = 0.1
    smoothing: int = 1
    tail_smoothing: int = 5
    patience: int = 2
    trend: int = 5
    horizon: int = 0
    min_deviation: float = 2.5
    max_factor: float = 4.0
    cooldown: int = 20

    def __post_init__(self) -> None:
        for name in ("baseline_iterations", "smoothing", "tail_smoothing", "patience", "cooldown"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be at least 1.")
        if self.trend < 3 or self.horizon < 0:
            raise ValueError(f"`trend` ({self.trend}) must be at least 3 and `horizon` ({self.horizon}) at least 0.")
        for name in ("threshold", "baseline_kl", "min_deviation", "max_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be positive.")


class CollapseRule:
    """Feed it one mapping of signals per iteration; it answers with a :class:`Flag` or None.

    Signals are those of ``DIRECTIONS``; ``kl`` is needed, any other may be absent.

    Args:
        config: The constants.
        baseline: Values to take for the baseline instead of the first iterations', e.g. measured on the SFT model.

    Attributes:
        index: The joint index after the last ``update``, nats per token.
        forecast: The index ``horizon`` iterations ahead, what the rule judges.

    Raises:
        ValueError: If ``baseline`` names an unknown signal or has an empty list.
    """

    def __init__(self, config: RuleConfig | None = None, baseline: Mapping[str, Sequence[float]] | None = None) -> None:
        self.config = config or RuleConfig()
        for name, values in (baseline or {}).items():
            if name not in DIRECTIONS or not values:
                raise ValueError(f"`baseline` ({name!r}) must give values for one of {list(DIRECTIONS)}.")
        self._given = {name: list(values) for name, values in (baseline or {}).items()}
        self._first: dict[str, list[float]] = {}
        self._seen: dict[str, int] = {}
        self._recent: dict[str, list[float]] = {}
        self._since: dict[str, int] = {}
        self._bad: dict[str, list[int]] = {}
        self._held: list[int] = []
        self._quiet = 0
        self._trail: list[float] = []
        self.index = self.forecast = 0.0

    def update(self, iteration: int, values: Mapping[str, float]) -> Flag | None:
        """Take in one iteration.

        Args:
            iteration: Its number; only compared and reported.
            values: Signal values. A non-finite one is skipped; ``patience`` of them in a row are a flag.

        Returns:
            The flag raised by this iteration, if any.

        Raises:
            ValueError: If ``kl`` is missing.
        """
        if ANCHOR not in values:
            raise ValueError(f"`values` ({sorted(values)}) must have {ANCHOR!r}.")
        self._quiet = max(0, self._quiet - 1)
        self._absorb(iteration, values)
        readings = {name: self._read(name, iteration) for name in DIRECTIONS if self._ready(name)}
        self.index = _joint(readings) if ANCHOR in readings else 0.0
        fired = tuple(name for name, reading in readings.items() if reading.since >= 0)
        broken = tuple(n for n, its in self._bad.items() if len(its) >= self.config.patience)
        self._trail = [*self._trail, self.index][-self.config.trend :]
        self.forecast = _ahead(self._trail, self.config.horizon)
        holds = self.forecast >= self.config.threshold and ANCHOR in fired and len(fired) > 1
        self._held = [*self._held, iteration] if holds else []
        if self._quiet or not (broken or len(self._held) >= self.config.patience):
            return None
        self._quiet = self.config.cooldown
        since = min([self._bad[n][0] for n in broken] + self._held[:1])
        labels = (*fired, *(f"{name} not finite" for name in broken))
        index, forecast = (math.inf, math.inf) if broken else (self.index, self.forecast)
        return Flag(iteration=iteration, since=since, index=index, forecast=forecast, fired=labels, readings=readings)

    def forget_recent(self) -> None:
        """Drop what was seen since the baseline: the policy was set back."""
        self._recent, self._since, self._bad, self._held, self._trail = {}, {}, {}, [], []

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``update`` reads, as primitives."""
        names = ("_given", "_first", "_seen", "_recent", "_since", "_bad", "_held", "_quiet", "_trail")
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume where the state was taken."""
        for name, value in state_dict.items():
            setattr(self, name, copy.deepcopy(value))

    def _absorb(self, iteration: int, values: Mapping[str, float]) -> None:
        moved = self._moved(values[ANCHOR])
        for name in DIRECTIONS:
            if name not in values:
                continue
            if not math.isfinite(values[name]):
                self._bad[name] = [*self._bad.get(name, []), iteration]
                continue
            self._bad.pop(name, None)
            if self._seen.setdefault(name, 0) < self.config.baseline_iterations:
                self._seen[name] += 1
                self._first.setdefault(name, []).extend([] if moved else [values[name]])
            window = self.config.tail_smoothing if name == "tail" else self.config.smoothing
            self._recent[name] = [*self._recent.get(name, []), values[name]][-window:]

    def _moved(self, kl: float) -> bool:
        """Whether a KL is too far from where the run began for its rollout to be baseline."""
        start = self._given.get(ANCHOR) or self._first.get(ANCHOR, [])[:1]
        return bool(start) and kl > median(start) + self.config.baseline_kl

    def _ready(self, name: str) -> bool:
        seen = self._seen.get(name, 0) >= self.config.baseline_iterations and bool(self._first.get(name))
        return (name in self._given or seen) and bool(self._recent.get(name))

    def _read(self, name: str, iteration: int) -> Reading:
        cfg, base = self.config, self._given.get(name) or self._first[name]
        center, value = median(base), median(self._recent[name])
        floor = FLOORS[name] * (1.0 if name == ANCHOR else abs(center))
        scale = max(_NORMAL * median(abs(x - center) for x in base), floor, 1e-12)
        excess = DIRECTIONS[name] * (value - center) if DIRECTIONS[name] else abs(value - center)
        deviation = excess / scale
        significant = deviation >= cfg.min_deviation
        since = self._since.setdefault(name, iteration) if significant else -1
        if not significant:
            self._since.pop(name, None)
        factor = excess if name == ANCHOR else _ratio(value, center, DIRECTIONS[name], cfg.max_factor)
        kept = max(0.0, factor) if name == ANCHOR else (factor if significant else 1.0)
        return Reading(value=value, baseline=center, deviation=deviation, factor=kept, since=since)


def _joint(readings: Mapping[str, Reading]) -> float:
    """The product of the factors; of those of repetition, the larger."""
    repeated = max((readings[name].factor for name in REPETITION if name in readings), default=1.0)
    return repeated * math.prod(reading.factor for name, reading in readings.items() if name not in REPETITION)


def _ahead(trail: Sequence[float], horizon: int) -> float:
    """The value ``horizon`` steps ahead on the line through ``trail``; its last one where there is no line to draw."""
    if horizon == 0 or len(trail) < 3:
        return trail[-1]
    line = linear_regression(range(len(trail)), trail)
    return line.intercept + line.slope * (len(trail) - 1 + horizon)


def _ratio(value: float, center: float, direction: int, cap: float) -> float:
    """How many times worse ``value`` is than ``center``; both positive for every signal but KL."""
    worse_above = value > center if direction == 0 else direction > 0
    up, down = (value, center) if worse_above else (center, value)
    return cap if down <= 0 else min(cap, max(1.0, up / down))
