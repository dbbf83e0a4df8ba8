import math

import pytest
import torch
from scipy.stats import chisquare

from lit_rlhf.rollout.sampling import (
    SamplingConfig,
    _sorted_threshold,
    inverse_cdf,
    keep_top_k,
    keep_top_p,
    token_weights,
)

LOGITS = [1.5, 0.2, -0.7, 2.1, -1.3, 0.9, 0.1, -3.0, 1.1]
EOS = 4
DRAWS = 40_000


def exact_distribution(sampling: SamplingConfig, generated: list[int], position: int) -> list[float]:
    """The distribution term by term in Python floats, from the definitions."""
    logits = list(LOGITS)
    if position + 1 < sampling.min_response_length:
        logits[EOS] = -math.inf
    for token in set(generated):
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    logits = [x / sampling.temperature for x in logits]
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = set(ranked[: sampling.top_k or len(logits)])
    exps = [math.exp(x) if i in kept else 0.0 for i, x in enumerate(logits)]
    probs = [x / sum(exps) for x in exps]
    nucleus, mass = set(), 0.0
    for i in ranked:
        if mass >= sampling.top_p:
            break
        nucleus.add(i)
        mass += probs[i]
    probs = [p if i in nucleus else 0.0 for i, p in enumerate(probs)]
    return [p / sum(probs) for p in probs]


CASES = {
    "plain": (SamplingConfig(), []),
    "temperature": (SamplingConfig(temperature=0.6), []),
    "hot": (SamplingConfig(temperature=2.5), []),
    "top-p": (SamplingConfig(top_p=0.8), []),
    "top-k": (SamplingConfig(top_k=3), []),
    "repetition": (SamplingConfig(repetition_penalty=1.5), [3, 2, 3, 0]),
    "encouraged": (SamplingConfig(repetition_penalty=0.7), [3, 2]),
    "minimum": (SamplingConfig(min_response_length=4), [1, 1]),
    "all": (SamplingConfig(temperature=0.8, top_p=0.9, top_k=6, repetition_penalty=1.3, min_response_length=9), [3, 5]),
}


@pytest.mark.parametrize(("sampling", "generated"), CASES.values(), ids=CASES.keys())
def test_draws_follow_the_exact_distribution(sampling, generated):
    seen = torch.tensor([generated], dtype=torch.long).expand(DRAWS, -1)
    weights = token_weights(
        torch.tensor([LOGITS]).expand(DRAWS, -1),
        sampling=sampling,
        eos_token_ids=[EOS],
        position=len(generated),
        seen_ids=seen,
        seen_mask=torch.ones_like(seen, dtype=torch.bool),
    )
    uniforms = torch.rand(DRAWS, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    counts = torch.bincount(inverse_cdf(weights, uniforms), minlength=len(LOGITS)).tolist()
    exact = exact_distribution(sampling, generated, len(generated))
    possible = [i for i, p in enumerate(exact) if p > 0]
    assert sum(counts[i] for i in possible) == DRAWS
    assert chisquare([counts[i] for i in possible], [exact[i] * DRAWS for i in possible]).pvalue > 1e-3


@pytest.mark.parametrize(("sampling", "generated"), CASES.values(), ids=CASES.keys())
def test_weights_are_the_exact_distribution(sampling, generated):
    seen = torch.tensor([generated], dtype=torch.long)
    weights = token_weights(
        torch.tensor([LOGITS]),
        sampling=sampling,
        eos_token_ids=[EOS],
        position=len(generated),
        seen_ids=seen,
        seen_mask=torch.ones_like(seen, dtype=torch.bool),
    )
    expected = torch.tensor([exact_distribution(sampling, generated, len(generated))])
    torch.testing.assert_close(weights / weights.sum(), expected, atol=1e-6, rtol=1e-5)


def test_a_stricter_chi_square_would_notice_a_wrong_temperature():
    """The distribution test has power: draws at temperature 0.97 are told from temperature 1."""
    uniforms = torch.rand(DRAWS, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    weights = torch.tensor([LOGITS]).div(0.95).softmax(-1).expand(DRAWS, -1)
    counts = torch.bincount(inverse_cdf(weights, uniforms), minlength=len(LOGITS)).tolist()
    exact = exact_distribution(SamplingConfig(), [], 0)
    assert chisquare(counts, [p * DRAWS for p in exact]).pvalue < 1e-3


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 64, 1000, 5003])
def test_inverse_cdf_inverts_the_cumulative_sum(vocabulary):
    g = torch.Generator().manual_seed(vocabulary)
    weights = torch.rand(32, vocabulary, generator=g) * (torch.rand(32, vocabulary, generator=g) > 0.3)
    weights[:, -1] += 0.1
    uniforms = torch.rand(32, generator=g, dtype=torch.float64)
    cumulative = weights.double().cumsum(-1)
    expected = (cumulative <= (uniforms * cumulative[:, -1])[:, None]).sum(-1)
    drawn = inverse_cdf(weights, uniforms)
    # Sums of different order may put a uniform on the other side of a boundary only when it lies on the boundary.
    gap = (cumulative.gather(1, torch.minimum(drawn, expected)[:, None])[:, 0] / cumulative[:, -1] - uniforms).abs()
    assert ((drawn == expected) | (gap < 1e-6)).all()
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_extreme_uniforms_never_draw_an_excluded_token():
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0, 0.0, 0.0]])
    assert inverse_cdf(weights, torch.zeros(1, dtype=torch.float64)).item() == 1
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(weights, almost_one).item() == 3


def test_small_probabilities_survive():
    """A token of probability 1e-9 has its share of the uniforms, which an fp32 scan of the vocabulary would lose."""
    weights = torch.full((1, 300), 0.0)
    weights[0, 0], weights[0, 200] = 1.0, 1e-9
    total = 1.0 + 1e-9
    assert inverse_cdf(weights, torch.tensor([(1.0 - 1e-12) / total], dtype=torch.float64)).item() == 0
    assert inverse_cdf(weights, torch.tensor([(1.0 + 5e-10) / total], dtype=torch.float64)).item() == 200


def test_nucleus_of_a_flat_distribution_needs_more_than_the_first_look():
    probs = torch.rand(4, 500, generator=torch.Generator().manual_seed(0)).softmax(-1)
    whole, partial = keep_top_p(probs, p=0.9, first_look=500), keep_top_p(probs, p=0.9, first_look=2)
    assert torch.equal(whole, partial)
    assert (whole.sum(-1) >= 0.9 - 1e-5).all()
    smallest = whole.masked_fill(whole == 0, 2.0).amin(-1)
    assert (whole.sum(-1) - smallest < 0.9).all()
    assert 0 < int((whole == 0).sum()) < whole.numel()


def test_ties_are_kept_whatever_their_order():
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert torch.equal(keep_top_p(probs, p=0.5), probs)
    assert torch.equal(keep_top_k(probs, k=2), probs)
    assert torch.equal(keep_top_k(probs, k=1), torch.tensor([[0.4, 0.0, 0.0, 0.0]]))


def test_every_eos_is_held_back_until_the_minimum():
    logits = torch.zeros(1, 5)
    sampling = SamplingConfig(min_response_length=3)
    before = token_weights(logits, sampling=sampling, eos_token_ids=[1, 3], position=1)
    assert before.gt(0).tolist() == [[True, False, True, False, True]]
    # Token number 3 may be the EOS: the response then has 3 tokens.
    assert token_weights(logits, sampling=sampling, eos_token_ids=[1, 3], position=2).gt(0).all()


def test_rows_may_stand_at_different_positions():
    logits = torch.zeros(3, 5)
    sampling = SamplingConfig(min_response_length=3)
    kept = token_weights(logits, sampling=sampling, eos_token_ids=[1, 3], position=torch.tensor([1, 2, 0])).gt(0)
    early = [True, False, True, False, True]
    assert kept.tolist() == [early, [True] * 5, early]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999, 1 - 1e-7])
@pytest.mark.parametrize("flat", [False, True])
def test_sorting_finds_the_nucleus_that_looking_finds(p, flat):
    g = torch.Generator().manual_seed(0)
    weights = (torch.randn(16, 700, generator=g) * (0.1 if flat else 4)).softmax(-1)
    weights[:, ::7] = 0.0
    weights[0, 1:4] = weights[0].max()  # ties
    threshold = _sorted_threshold(weights, target=p * weights.sum(-1, keepdim=True))
    assert torch.equal(weights * (weights >= threshold), keep_top_p(weights, p=p, first_look=700))
    if p < 0.9999:  # where sums of another order do not decide
        assert torch.equal(weights * (weights >= threshold), keep_top_p(weights, p=p))


@pytest.mark.parametrize("sampling", [case[0] for case in CASES.values()], ids=CASES.keys())
def test_on_an_accelerator_no_draw_asks_the_host(sampling):
    """Meta tensors have no values: whatever looks at one (``bool``, ``nonzero``, ``item``) raises."""
    meta = {"device": "meta", "dtype": torch.int64}
    weights = token_weights(
        torch.empty(4, 3000, device="meta"),
        sampling=sampling,
        eos_token_ids=torch.zeros(2, **meta),
        position=torch.zeros(4, **meta),
        seen_ids=torch.zeros(4, 6, **meta),
        seen_mask=torch.zeros(4, 6, **meta).bool(),
    )
    drawn = inverse_cdf(weights, torch.zeros(4, dtype=torch.float64, device="meta"))
    assert drawn.shape == (4,)
    with pytest.raises(RuntimeError, match="meta"):
        bool((drawn > 0).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, r"`temperature` \(-0.1\) must be finite and >= 0"),
        ({"temperature": math.nan}, r"`temperature` \(nan\)"),
        ({"top_p": 0.0}, r"`top_p` \(0.0\) must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"`top_p` \(1.5\)"),
        ({"top_k": -1}, r"`top_k` \(-1\) must be >= 0"),
        ({"repetition_penalty": 0.0}, r"`repetition_penalty` \(0.0\) must be > 0"),
        ({"max_response_length": 0}, r"`max_response_length` \(0\) must be >= 1"),
        ({"min_response_length": -2}, r"`min_response_length` \(-2\) must be >= 0"),
        ({"min_response_length": 9, "max_response_length": 8}, r"`min_response_length` \(9\) must not exceed"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**arguments)
