"""A judge made of any reward: the answer with the higher score wins."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.data.batching import pad_left, pad_right
from lit_rlhf.data.template import check_template, encode_prompt, encode_response
from lit_rlhf.evaluation.answers import Answer, Pair
from lit_rlhf.evaluation.judges.base import Judge, Verdict, by_margin, check_margin
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.rewards.base import Reward
from lit_rlhf.types import RewardRequest, Rollout


class RewardJudge(Judge):
    """Scores every answer once with a reward (reward model, Python function, HTTP service) and compares the scores.

    Prompts and responses are encoded again from their text, as in training. Where the difference of two scores means
    something, the tie margin is known: say it, or let a reward model's own report say it.

    Args:
        reward: What scores an answer.
        tie_margin: Scores that differ by at most this tie.
        calibration: Instead of ``tie_margin``: the ``reward_report.json`` of this reward model. The margin is then the
            smallest difference from which on the model's favorites win more often than by a coin (:func:`margin_of`).
        tokenizer: Folder or hub name of the tokenizer to encode with; default: the reward's own ``path``.
        template: Named chat template for tokenizers without one.
        batch_size: Answers in one request to the reward.
        device: Where a model is put; default: a GPU where there is one.
        name: Used in tables and messages; default: the reward's.

    Raises:
        ValueError: If not exactly one of ``tie_margin`` and ``calibration`` is given, there is no tokenizer, or a
            number is out of range.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        tie_margin: float | None = None,
        calibration: str | None = None,
        tokenizer: str | None = None,
        template: str | None = None,
        batch_size: int = 256,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        if (tie_margin is None) == (calibration is None):
            raise ValueError("Give `tie_margin` or `calibration`, one of them: what difference of scores is a tie?")
        if batch_size < 1:
            raise ValueError(f"`batch_size` ({batch_size}) must be at least 1.")
        path = tokenizer or getattr(reward, "path", None)
        if not isinstance(path, str):
            raise ValueError(f"`tokenizer` must be named: {type(reward).__name__} brings none.")
        self.reward, self.tokenizer_path, self.template, self.batch_size = reward, path, template, batch_size
        self.tie_margin = check_margin(tie_margin) if calibration is None else margin_of(calibration)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.name = name or reward.name
        self._tokenizer: Any = None
        self._scores: dict[tuple[str, str, bool], float] = {}

    def setup(self) -> None:
        """Load the tokenizer, and whatever the reward loads.

        Raises:
            FileNotFoundError: No such folder or hub name.
            ValueError: The template cannot be used, or the reward cannot be set up.
        """
        self._tokenizer = load_tokenizer(self.tokenizer_path)
        check_template(self._tokenizer, self.template)
        self.reward.setup(device=self.device, tokenizer=self._tokenizer)

    def compare(self, prompt: str, a: Answer, b: Answer) -> Verdict:
        """Score both and compare."""
        return self.judge([Pair(a=a, b=b)])[0]

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Score what was not scored yet, in batches; then compare.

        Raises:
            ValueError: A score is not one finite number per answer.
        """
        answers = {_content(x): x for pair in pairs for x in (pair.a, pair.b)}
        todo = [answer for place, answer in answers.items() if place not in self._scores]
        for start in range(0, len(todo), self.batch_size):
            part = todo[start : start + self.batch_size]
            request = reward_request(self._tokenizer, part, template=self.template, device=self.device)
            scores = self.reward(request).scores.tolist()
            self._scores |= {_content(x): score for x, score in zip(part, scores, strict=True)}
        return [self._verdict(pair) for pair in pairs]

    def _verdict(self, pair: Pair) -> Verdict:
        own, other = (self._scores[_content(x)] for x in (pair.a, pair.b))
        return Verdict(outcome=by_margin(own, other, tie_margin=self.tie_margin), scores=(own, other))

    def describe(self) -> dict[str, Any]:
        """The reward and the margin, too."""
        return {**super().describe(), "reward": self.reward.describe(), "tie_margin": self.tie_margin}


def reward_request(
    tokenizer: Any, answers: Sequence[Answer], *, template: str | None = None, device: torch.device | str = "cpu"
) -> RewardRequest:
    """Saved answers as a reward sees fresh ones: ids, texts and raw records.

    Args:
        tokenizer: Encodes prompts (in its chat template or the named one) and responses, each on its own.
        answers: B saved answers.
        template: Named template, or None.
        device: Where the ids are put.
    """
    prompts = [encode_prompt(tokenizer, answer.turns, template=template) for answer in answers]
    prompt_ids, prompt_mask = pad_left(prompts, tokenizer.eos_token_id)
    responses = [_response_ids(tokenizer, answer, template) for answer in answers]
    response_ids, response_mask = pad_right(responses, tokenizer.eos_token_id)
    return RewardRequest(
        rollout=Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            records=tuple(answer.record for answer in answers),
            input_ids=torch.cat([prompt_ids, response_ids], 1),
            attention_mask=torch.cat([prompt_mask, response_mask], 1),
            response_mask=response_mask,
            ended=torch.tensor([answer.ended for answer in answers]),
        ).to(device),
        prompts=tokenizer.batch_decode(prompts),
        responses=[answer.text for answer in answers],
        records=[answer.record for answer in answers],
        template=template,
    )


def _content(answer: Answer) -> tuple[str, str, bool]:
    """What a score depends on: equal answers to a prompt are scored once."""
    return answer.key, answer.text, answer.ended


def _response_ids(tokenizer: Any, answer: Answer, template: str | None) -> list[int]:
    ids = encode_response(tokenizer, answer.text, template=template)
    return ids if answer.ended or len(ids) == 1 else ids[:-1]  # a cut response has no EOS; one of nothing keeps it


def margin_of(report: str | Path) -> float:
    """The tie margin that a reward model's report speaks for.

    The report's reliability curve says how often the model's favorite of a held-out pair is the annotator's, by
    confidence :math:`c = sigmoid(|difference|)`. The margin is the difference at the lower edge of the first bin from
    which on every bin's accuracy is above one half, interval included: smaller differences are a coin's.

    Args:
        report: ``reward_report.json`` of ``lit-rlhf test`` or ``lit-rlhf score --report``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such report, or no bin is better than a coin.
    """
    try:
        bins = json.loads(Path(report).read_text(encoding="utf-8"))["calibration"]["bins"]
        rows = [(float(b["low"]), b["accuracy"]["low"]) for b in bins]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"`calibration` ({report}) is no reward_report.json: {error!r}.") from None
    sure = list(_sure_from_the_top(rows))
    if not sure:
        raise ValueError(f"`calibration` ({report}): no score difference of this model is better than a coin.")
    edge = min(sure)
    return math.log(edge / (1 - edge))


def _sure_from_the_top(rows: Sequence[tuple[float, Any]]) -> Iterator[float]:
    """Lower edges of the bins, from the highest down to the first that is no better than a coin."""
    for edge, low in sorted(rows, reverse=True):
        if low is None or not low > 0.5:
            return
        yield edge
