"""Break the package on purpose, one slip at a time, and see its tests notice.

Each mutation replaces one piece of text in a temporary copy (the tree is never touched) and runs the test file that
should fail. Usage:

    python -m tests.soak.mutations                                 # all; exit code 1 if one survives
    python -m tests.soak.mutations functional/kl functional/losses # only those of the files named
"""

# ruff: noqa: E501
from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("lit_rlhf", "tests")


class Mutation(NamedTuple):
    """One slip: `before` occurs once in `lit_rlhf/<file>.py`; `tests` when they are not in the mirror file."""

    file: str
    what: str
    before: str
    after: str
    tests: str = ""


MUTATIONS = [
    # masking
    Mutation("functional/masking", "mask dropped", "return torch.where(mask, wide, torch.zeros_like(wide))", "return wide"),
    Mutation("functional/masking", "product in place of where", "torch.where(mask, wide, torch.zeros_like(wide))", "wide * mask"),
    Mutation("functional/masking", "mask inverted", "torch.where(mask, wide,", "torch.where(~mask, wide,"),
    Mutation("functional/masking", "sums in the input's precision", "torch.promote_types(x.dtype, torch.float32)", "x.dtype"),
    Mutation("functional/masking", "moments of all elements", "count = mask.sum().to(wide.dtype)", "count = torch.tensor(float(mask.numel())).to(wide.dtype)"),
    Mutation("functional/masking", "moments of nothing are nan", "mean = wide.sum() / count.clamp(min=1)", "mean = wide.sum() / count"),
    Mutation("functional/masking", "deviations of padding counted", "keep(wide - mean, mask).square().sum()", "(wide - mean).square().sum()"),
    Mutation("functional/masking", "squares in fp32", "else torch.float64", "else torch.float32"),
    Mutation("functional/masking", "sample for population variance", "return mean, m2 / count.clamp(min=1)", "return mean, m2 / (count - 1).clamp(min=1)"),
    Mutation("functional/masking", "whitening adds the mean back", "white if shift_mean else white + mean", "white + mean if shift_mean else white"),
    Mutation("functional/masking", "whitening divides by the variance", "(variance + VARIANCE_EPS) ** -0.5", "(variance + VARIANCE_EPS) ** -1"),
    Mutation("functional/masking", "whitening without epsilon", "(variance + VARIANCE_EPS) ** -0.5", "variance ** -0.5"),
    Mutation("functional/masking", "global moments ignored", "moments or _mean_and_variance(x, mask)", "_mean_and_variance(x, mask)"),
    Mutation("functional/masking", "whitened padding is not zero", "return keep(white if shift_mean else white + mean, mask).to(kept.dtype)", "return (white if shift_mean else white + mean).to(kept.dtype)"),
    # logprobs
    Mutation("functional/logprobs", "token off by one", "logp.gather(-1, ids.unsqueeze(-1))", "logp.roll(1, -1).gather(-1, ids.unsqueeze(-1))"),
    Mutation("functional/logprobs", "logits not normalized", "return torch.log_softmax(logits, dim=-1, dtype=_float(logits))", "return logits.to(_float(logits))"),
    Mutation("functional/logprobs", "log-softmax over tokens", "torch.log_softmax(logits, dim=-1,", "torch.log_softmax(logits, dim=0,"),
    Mutation("functional/logprobs", "arithmetic in bf16", "return torch.promote_types(logits.dtype, torch.float32)", "return logits.dtype"),
    Mutation("functional/logprobs", "sign of the entropy", "return -(finite.exp() * finite).sum(-1)", "return (finite.exp() * finite).sum(-1)"),
    Mutation("functional/logprobs", "zero times minus infinity", "return logp.clamp(min=-1000.0)", "return logp.clone()"),
    Mutation("functional/logprobs", "no checkpoint", "checkpoint(of_chunk, h, t, use_reentrant=False, preserve_rng_state=False)", "of_chunk(h, t)"),
    Mutation("functional/logprobs", "always a checkpoint", "if ids.numel() <= chunk_size:", "if ids.numel() == 0:"),
    Mutation("functional/logprobs", "a full chunk recomputed", "if ids.numel() <= chunk_size:", "if ids.numel() < chunk_size:"),
    Mutation("functional/logprobs", "chunks in reverse", "torch.cat(column) for", "torch.cat(column[::-1]) for"),
    Mutation("functional/logprobs", "entropy without gradient", "if grad_entropy is not None:", "if grad_entropy is None and False:"),
    Mutation("functional/logprobs", "half of the entropy's gradient", ".add_(p.mul_(scale))", ""),
    Mutation("functional/logprobs", "gradient of the log-probability lost", "wanted.scatter_add_(1, ids[rows, None], grad[rows, None])", "pass"),
    Mutation("functional/logprobs", "all rows in one block", "step = max(1, elements // logits.size(1))", "step = len(logits) + elements"),
    Mutation("functional/logprobs", "gradient of the projection lost", ".apply(project(states), tokens", ".apply(project(states).detach() + 0 * states.sum(), tokens"),
    Mutation("functional/logprobs", "entropy although not asked for", "columns[1] if with_entropy else None", "columns[-1]"),
    # kl
    Mutation("functional/kl", "sign of KL", "return logprobs.to(wide) - ref_logprobs.to(wide)", "return ref_logprobs.to(wide) - logprobs.to(wide)"),
    Mutation("functional/kl", "k3 with the wrong direction", "torch.expm1(-d) + d", "torch.expm1(d) - d"),
    Mutation("functional/kl", "k3 without the control variate", "torch.expm1(-d) + d", "torch.expm1(-d)"),
    Mutation("functional/kl", "k3 loses its digits", "torch.expm1(-d) + d", "torch.exp(-d) - 1.0 + d"),
    Mutation("functional/kl", "k3 held at the wrong end", ".clamp(min=0.0)", ".clamp(max=0.0)"),
    Mutation("functional/kl", "ratio overflows", ".clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)", ""),
    Mutation("functional/kl", "arithmetic in bf16", "torch.promote_types(torch.promote_types(logprobs.dtype, ref_logprobs.dtype), torch.float32)", "logprobs.dtype"),
    # moments
    Mutation("functional/moments", "mean shifted by the wrong share", "delta * (count / total)", "delta * (self.count / total)"),
    Mutation("functional/moments", "spread between batches dropped", "self.m2 + m2 + delta * delta * (self.count * count / total)", "self.m2 + m2"),
    Mutation("functional/moments", "spread within the batch dropped", "self.m2 + m2 + delta", "self.m2 + delta"),
    Mutation("functional/moments", "count not added", "total = self.count + count", "total = max(self.count, count)"),
    Mutation("functional/moments", "population for sample deviation", "self.m2 / (self.count - 1.0)", "self.m2 / self.count"),
    Mutation("functional/moments", "variance for deviation", "std = math.sqrt(self.m2 / (self.count - 1.0))", "std = self.m2 / (self.count - 1.0)"),
    Mutation("functional/moments", "one score has no spread", "if self.count < 2:", "if self.count < 1:"),
    Mutation("functional/moments", "division by no spread", "return std if std > RESOLUTION * max(1.0, abs(self.mean)) else 1.0", "return std"),
    Mutation("functional/moments", "resolution not relative", "RESOLUTION * max(1.0, abs(self.mean))", "RESOLUTION"),
    Mutation("functional/moments", "non-finite scores let in", "if not all(map(math.isfinite, (count, mean, m2))) or", "if"),
    Mutation("functional/moments", "fp32 moments", "x.detach().cpu().to(torch.float64)", "x.detach().cpu().float()"),
    # shaping
    Mutation("functional/shaping", "moments of the batch counted twice", "shaped - moments.mean", "shaped - moments.update_from(scores).mean"),
    Mutation("functional/shaping", "mean not subtracted", "shaped = shaped - moments.mean", "shaped = shaped"),
    Mutation("functional/shaping", "not divided", "shaped = shaped / moments.std", "shaped = shaped"),
    Mutation("functional/shaping", "scale subtracts the mean", "    if normalize:\n", "    if normalize or scale:\n"),
    Mutation("functional/shaping", "normalize does not divide", "if normalize or scale:", "if scale:"),
    Mutation("functional/shaping", "clip min and max swapped", "shaped.clamp(-clip, clip)", "shaped.clamp(clip, -clip)"),
    Mutation("functional/shaping", "clip from above alone", "shaped.clamp(-clip, clip)", "shaped.clamp(max=clip)"),
    Mutation("functional/shaping", "ended responses penalized", "torch.where(ended, wide, wide - (penalty or 0.0))", "torch.where(ended, wide - (penalty or 0.0), wide)"),
    Mutation("functional/shaping", "penalty added", "wide - (penalty or 0.0)", "wide + (penalty or 0.0)"),
    Mutation("functional/shaping", "replacement of zero ignored", "if replacement is not None:", "if replacement:"),
    Mutation("functional/shaping", "sign of the KL penalty", "penalty = -kl_coef", "penalty = kl_coef"),
    Mutation("functional/shaping", "KL coefficient dropped", "penalty = -kl_coef * k1", "penalty = -k1"),
    Mutation("functional/shaping", "score at every token", "last = mask & (later == 1)", "last = mask"),
    Mutation("functional/shaping", "score at the first token", "mask.long().flip(1).cumsum(1).flip(1)", "mask.long().cumsum(1)"),
    Mutation("functional/shaping", "score one token early", "(later == 1)", "(later == 2)"),
    Mutation("functional/shaping", "score on padding", "last = mask & (later == 1)", "last = later == later.clamp(max=1)"),
    Mutation("functional/shaping", "mask of the KL penalty dropped", "k1(keep(logprobs, mask), keep(ref_logprobs, mask))", "k1(logprobs.float(), ref_logprobs.float())"),
    Mutation("functional/shaping", "mask of the process reward dropped", "rewards + keep(token_scores, mask)", "rewards + token_scores"),
    Mutation("functional/shaping", "process reward dropped", "return rewards if token_scores is None else rewards + keep(token_scores, mask)", "return rewards"),
    # advantages
    Mutation("functional/advantages", "gamma dropped from the error", "+ gamma * next_value - value", "+ next_value - value"),
    Mutation("functional/advantages", "gamma dropped from the sum", "delta + gamma * gae_lambda * next_advantage", "delta + gae_lambda * next_advantage"),
    Mutation("functional/advantages", "lambda dropped", "gamma * gae_lambda * next_advantage", "gamma * next_advantage"),
    Mutation("functional/advantages", "off by one in the shift", "range(mask.size(1) - 1, -1, -1)", "range(mask.size(1) - 1, 0, -1)"),
    Mutation("functional/advantages", "last token skipped", "range(mask.size(1) - 1, -1, -1)", "range(mask.size(1) - 2, -1, -1)"),
    Mutation("functional/advantages", "value of this token for the next", "gamma * next_value - value", "gamma * value - value"),
    Mutation("functional/advantages", "baseline dropped", "+ gamma * next_value - value", "+ gamma * next_value"),
    Mutation("functional/advantages", "value of padding used", "next_value = torch.where(here, value, next_value)", "next_value = value"),
    Mutation("functional/advantages", "advantage through a hole", "next_advantage = torch.where(here, advantage, next_advantage)", "next_advantage = advantage"),
    Mutation("functional/advantages", "mask of the inputs dropped", "kept_rewards, kept_values = keep(rewards, mask), keep(values, mask)", "kept_rewards, kept_values = rewards.float(), values.float()"),
    Mutation("functional/advantages", "mask of the advantages dropped", "advantages = keep(advantages, mask)", "advantages = advantages * 1.0"),
    Mutation("functional/advantages", "returns without the values", "return advantages, advantages + kept_values", "return advantages, advantages"),
    Mutation("functional/advantages", "returns at lambda zero", "gamma=gamma, gae_lambda=1.0)[1]", "gamma=gamma, gae_lambda=0.0)[1]"),
    Mutation("functional/advantages", "population deviation of a group", "/ (group_size - 1)\n", "/ group_size\n"),
    Mutation("functional/advantages", "variance for deviation of a group", "(variance.sqrt() + STD_EPS)", "(variance + STD_EPS)"),
    Mutation("functional/advantages", "epsilon of a group dropped", "(variance.sqrt() + STD_EPS)", "variance.sqrt()"),
    Mutation("functional/advantages", "groups interleaved", ".view(-1, group_size)", ".view(group_size, -1).T"),
    Mutation("functional/advantages", "leave-one-out keeps itself in", "deviation * (group_size / (group_size - 1))", "deviation"),
    Mutation("functional/advantages", "squares of a group in fp32", "scores.to(accumulation_dtype(scores.device))", "scores.float()"),
    # losses
    Mutation("functional/losses", "sign of the surrogate", "    loss = -ratio * advantages\n", "    loss = ratio * advantages\n"),
    Mutation("functional/losses", "clip min and max swapped", "ratio.clamp(1.0 - clip_range, 1.0 + clip_range)", "ratio.clamp(1.0 + clip_range, 1.0 - clip_range)"),
    Mutation("functional/losses", "clip from above alone", "ratio.clamp(1.0 - clip_range, 1.0 + clip_range)", "ratio.clamp(max=1.0 + clip_range)"),
    Mutation("functional/losses", "surrogate max -> min", "return torch.max(loss, bounded), ", "return torch.min(loss, bounded), "),
    Mutation("functional/losses", "surrogate always clipped", "return torch.max(loss, bounded), ", "return bounded, "),
    Mutation("functional/losses", "log-ratio for the ratio", "ratio = log_ratio(logprobs, old_logprobs).exp()", "ratio = log_ratio(logprobs, old_logprobs) + 1.0"),
    Mutation("functional/losses", "ratio upside down", "ratio = log_ratio(logprobs, old_logprobs).exp()", "ratio = log_ratio(old_logprobs, logprobs).exp()"),
    Mutation("functional/losses", "clipped counted the other way", "(bounded > loss)", "(bounded < loss)"),
    Mutation("functional/losses", "clipped counts ties", "(bounded > loss)", "(bounded >= loss)"),
    Mutation("functional/losses", "sign of the penalized surrogate", "return -log_rho.exp() * advantages", "return log_rho.exp() * advantages"),
    Mutation("functional/losses", "sign of the KL penalty", "+ beta * _old_to_new_kl(log_rho)", "- beta * _old_to_new_kl(log_rho)"),
    Mutation("functional/losses", "beta dropped", "beta * _old_to_new_kl(log_rho)", "_old_to_new_kl(log_rho)"),
    Mutation("functional/losses", "KL in the other direction", "k3(-log_rho, torch.zeros_like(log_rho))", "k3(log_rho, torch.zeros_like(log_rho))"),
    Mutation("functional/losses", "penalty without gradient", "beta * _old_to_new_kl(log_rho)", "beta * _old_to_new_kl(log_rho.detach())"),
    Mutation("functional/losses", "value clip max -> min", "0.5 * torch.max(error, bounded)", "0.5 * torch.min(error, bounded)"),
    Mutation("functional/losses", "value always clipped", "0.5 * torch.max(error, bounded)", "0.5 * bounded"),
    Mutation("functional/losses", "value clip around the return", "values.clamp(old_values - clip_range, old_values + clip_range)", "values.clamp(returns - clip_range, returns + clip_range)"),
    Mutation("functional/losses", "value clip bounds swapped", "values.clamp(old_values - clip_range, old_values + clip_range)", "values.clamp(old_values + clip_range, old_values - clip_range)"),
    Mutation("functional/losses", "value loss without the half", "0.5 * torch.max(error, bounded)", "torch.max(error, bounded)"),
    Mutation("functional/losses", "unclipped value loss without the half", "return 0.5 * error, ", "return error, "),
    Mutation("functional/losses", "value clipped counted the other way", "(bounded > error)", "(bounded < error)"),
    Mutation("functional/losses", "entropy punished", "        return -entropy\n", "        return entropy\n"),
    Mutation("functional/losses", "sign of the entropy distance", "torch.sign(mean - clip)", "torch.sign(clip - mean)"),
    Mutation("functional/losses", "entropy level dropped", "torch.sign(mean - clip) * (entropy - clip)", "torch.sign(mean - clip) * entropy"),
    Mutation("functional/losses", "sign of the LM loss", "return -logprobs.to(_wide(logprobs))", "return logprobs.to(_wide(logprobs))"),
    Mutation("functional/losses", "mask of the sum dropped", "total = keep(per_token, mask).sum()", "total = per_token.to(_wide(per_token)).sum()"),
    Mutation("functional/losses", "normalizer dropped", "mask.sum() if normalizer is None else normalizer", "mask.sum()"),
    Mutation("functional/losses", "mean over padding too", "mask.sum() if normalizer is None else normalizer", "mask.numel() if normalizer is None else normalizer"),
    Mutation("functional/losses", "sum in place of mean", "return total / torch.where(count > 0, count, torch.ones_like(count))", "return total"),
    Mutation("functional/losses", "no tokens give nan", "/ torch.where(count > 0, count, torch.ones_like(count))", "/ count"),
    Mutation("functional/losses", "fractions of a token rounded up", "torch.where(count > 0, count, torch.ones_like(count))", "count.clamp(min=1)"),
    Mutation("functional/losses", "fractions of a number rounded up", "(normalizer if normalizer > 0 else 1.0)", "max(normalizer, 1.0)"),
    Mutation("functional/losses", "no tokens, as a number, give nan", "(normalizer if normalizer > 0 else 1.0)", "normalizer"),
    Mutation("functional/losses", "measured ratio upside down", "log_ratio(keep(logprobs, mask), keep(old_logprobs, mask))", "log_ratio(keep(old_logprobs, mask), keep(logprobs, mask))"),
    Mutation("functional/losses", "ratio sums padding", "ratio=keep(ratio, mask).sum()", "ratio=ratio.sum()"),
    Mutation("functional/losses", "drift of the mean", "drift.max() if drift.numel()", "drift.mean() if drift.numel()"),
    Mutation("functional/losses", "drift signed", "keep(ratio - 1.0, mask).abs()", "keep(ratio - 1.0, mask)"),
    Mutation("functional/losses", "statistics carry a gradient", "@torch.no_grad()\ndef ratio_sums", "def ratio_sums"),
    # preference
    Mutation("functional/preference", "pairwise sign", "return -F.logsigmoid(gap)", "return -F.logsigmoid(-gap)"),
    Mutation("functional/preference", "sign of the loss", "return -F.logsigmoid(gap)", "return F.logsigmoid(gap)"),
    Mutation("functional/preference", "log of sigmoid", "-F.logsigmoid(gap)", "-torch.log(torch.sigmoid(gap))"),
    Mutation("functional/preference", "margin added", "gap = gap - margin.float()", "gap = gap + margin.float()"),
    Mutation("functional/preference", "margin dropped", "if margin is not None:", "if False:"),
    Mutation("functional/preference", "pair swapped", "return chosen.float() - rejected.float()", "return rejected.float() - chosen.float()"),
    Mutation("functional/preference", "difference in bf16", "gap = _gap(chosen, rejected)\n", "gap = chosen - rejected\n"),
    Mutation("functional/preference", "margin of another shape let in", "check_shapes(chosen=chosen, margin=margin)", "pass"),
    Mutation("functional/preference", "ties are right", "(torch.sign(_gap(chosen, rejected).detach()) + 1.0) / 2.0", "(_gap(chosen, rejected).detach() >= 0).float()"),
    # diagnostics
    Mutation("functional/diagnostics", "residual upside down", "1.0 - error_var / torch.where(varies, target_var,", "error_var / torch.where(varies, target_var,"),
    Mutation("functional/diagnostics", "bias of the critic counted", "error_var = error_sq / n - (error / n).square()", "error_var = error_sq / n"),
    Mutation("functional/diagnostics", "mean of the returns counted", "target_var = target_sq / n - (target / n).square()", "target_var = target_sq / n"),
    Mutation("functional/diagnostics", "division by no variance", "varies = target_var > 8 * torch.finfo(sums.dtype).eps * target_sq / n", "varies = target_var > -1"),
    Mutation("functional/diagnostics", "rounding taken for variance", "varies = target_var > 8 * torch.finfo(sums.dtype).eps * target_sq / n", "varies = target_var != 0"),
    Mutation("functional/diagnostics", "mask of the returns dropped", "target = keep(returns, mask).to(wide)", "target = returns.to(wide)"),
    Mutation("functional/diagnostics", "mask of the values dropped", "error = target - keep(values, mask).to(wide)", "error = target - values.to(wide)"),
    Mutation("functional/diagnostics", "padding counted", "count = mask.sum().to(wide)", "count = torch.tensor(mask.numel()).to(wide)"),
    Mutation("functional/diagnostics", "sign of the perplexity", "return math.exp(mean_nll)", "return math.exp(-mean_nll)"),
    Mutation("functional/diagnostics", "perplexity bounded", "return math.inf", "return math.exp(700.0)"),
    Mutation("functional/diagnostics", "perplexity bounded early", "    try:\n        return math.exp(mean_nll)", "    try:\n        return math.exp(mean_nll) if mean_nll < 700 else math.inf"),
    Mutation("functional/diagnostics", "gradient through the diagnosis", "@torch.no_grad()\ndef explained_variance_sums", "def explained_variance_sums"),
    Mutation("functional/diagnostics", "sample for population deviation", "variance = centered.square().mean()", "variance = centered.square().sum() / (len(ordered) - 1)"),
    Mutation("functional/diagnostics", "skew over the wrong power", "variance.pow(1.5)", "variance.pow(2.0)"),
    Mutation("functional/diagnostics", "kurtosis of a normal is 3", "variance.square() - 3.0", "variance.square()"),
    Mutation("functional/diagnostics", "tail of the lowest", "ordered[-top:].mean() - median", "ordered[:top].mean() - median"),
    Mutation("functional/diagnostics", "tail over the whole", "above / below", "above / variance.sqrt()"),
    # ngrams
    Mutation("functional/ngrams", "windows of padding counted", "return _hashed(windows)[whole]", "return _hashed(windows).flatten()"),
    Mutation("functional/ngrams", "windows half kept", "mask.unfold(1, order, 1).all(-1)\n    return", "mask.unfold(1, order, 1).any(-1)\n    return"),
    Mutation("functional/ngrams", "padding in the prefix", "ids[:, :length].masked_fill(~mask[:, :length], -1)", "ids[:, :length]"),
    Mutation("functional/ngrams", "order of tokens lost", "value = (value + token + 1) * _MULTIPLIER + (place + 1)", "value = value + token"),
    Mutation("functional/ngrams", "suffix for prefix", "head = ids[:, :length].masked_fill(~mask[:, :length], -1)", "head = ids[:, -length:].masked_fill(~mask[:, -length:], -1)"),
    # checks
    Mutation("functional/checks", "shapes not compared", "if len(set(shapes.values())) > 1:", "if False:"),
    # the order of things in the module
    Mutation(
        "modules/ppo",
        "moments updated after instead of before",
        """\
                if self.skip_reason is None:
                    self.moments = updated_moments(self.moments, scored.scores)
                # 3. Shape: normalize and clip the score, KL penalty per token (details 1, 4, 5; eq. 18-19).
                rewards = self.shape_rewards(scored)
""",
        """\
                rewards = self.shape_rewards(scored)
                if self.skip_reason is None:
                    self.moments = updated_moments(self.moments, scored.scores)
""",
        "tests/modules/test_ppo.py::test_moments_include_the_current_batch",
    ),
]  # fmt: skip


def main(names: list[str]) -> int:
    """Run the mutations of the files ``names`` (all without names) and report; 1 if any survived or did not apply."""
    import hypothesis  # noqa: F401  (imported once here, shared by every forked test run)
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    unknown = [name for name in names if name not in {m.file for m in MUTATIONS}]
    if unknown:
        print(
            f"no mutation is of {', '.join(unknown)}; there are some of {', '.join(sorted({m.file for m in MUTATIONS}))}"
        )
        return 2
    chosen = [m for m in MUTATIONS if not names or m.file in names]
    for file, tests in sorted({(m.file, m.tests) for m in chosen}):
        if run(Mutation(file, "", "", "", tests)) != 0:
            print(f"the tests of {file} fail without any mutation")
            return 1
    outcomes = {0: "SURVIVED", 1: "killed"}
    bad = 0
    for mutation in chosen:
        outcome = outcomes.get(run(mutation), "DOES NOT APPLY")
        bad += outcome != "killed"
        print(f"{outcome:14} {mutation.file:24} {mutation.what}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutations killed")
    return int(bad > 0)


def applies(mutation: Mutation) -> bool:
    """Whether the text to replace stands in its file exactly once."""
    source = ROOT / "lit_rlhf" / f"{mutation.file}.py"
    return source.is_file() and source.read_text(encoding="utf-8").count(mutation.before) == 1


def run(mutation: Mutation) -> int:
    """Exit status of pytest on a mutated copy: 0 passed, 1 failed, 2 the text was not found once, or no tests ran."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for tree in COPIED:
            shutil.copytree(ROOT / tree, copy / tree, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutation.before:
            if not applies(mutation):
                return 2
            source = copy / "lit_rlhf" / f"{mutation.file}.py"
            source.write_text(source.read_text().replace(mutation.before, mutation.after))
        room, name = mutation.file.rsplit("/", 1)
        return in_fork(copy, mutation.tests or f"tests/{room}/test_{name}.py")


def in_fork(folder: Path, tests: str) -> int:
    """Run pytest in a forked child, so that torch is imported once for all mutations."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(folder)]
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]  # `python -m` has imported the package from the tree, not from the copy
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout=60", tests])))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
