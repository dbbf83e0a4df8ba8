"""A judge of another kind: a logistic regression on the words of two responses, which knows no grammar and no prompt.

It shares neither trunk nor training with proxy and judge, only the annotators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlhf.data.records import PreferenceRecord


class WordJudge:
    r"""Scores a response by the words in it.

    .. math:: P(a \succ b) = \operatorname{sigmoid}(w^\top (x_a - x_b))

    with :math:`x` the response's tf-idf vector of unit length, so that the number of words says little.

    Args:
        records: Pairs to learn from.
        least: Responses that a word must be in.
    """

    def __init__(self, records: Sequence[PreferenceRecord], *, least: int = 3) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self._vectorizer: Any = TfidfVectorizer(min_df=least, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        self._vectorizer.fit([text for record in records for text in (record.chosen, record.rejected)])
        # Without an intercept a pair and its mirror image say the same; every other one is mirrored, for two classes.
        ordered = [(r.chosen, r.rejected) if i % 2 else (r.rejected, r.chosen) for i, r in enumerate(records)]
        difference = self._vectors([a for a, _ in ordered]) - self._vectors([b for _, b in ordered])
        self._model: Any = LogisticRegression(fit_intercept=False, max_iter=1000)
        self._model.fit(difference, [i % 2 for i in range(len(ordered))])

    def scores(self, responses: Sequence[str]) -> list[float]:
        """One number a response; only differences mean something."""
        found: list[float] = self._model.decision_function(self._vectors(responses)).tolist()
        return found

    def _vectors(self, responses: Sequence[str]) -> Any:
        return self._vectorizer.transform(responses)
