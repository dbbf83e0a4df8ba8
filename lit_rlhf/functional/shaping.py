"""From one score per response to one reward per token.

Conventions: ``scores (B,)`` are of any real dtype, ``mask (B, T)`` is True at response tokens up to and including EOS;
results are fp32. An argument outside its range, or a shape that does not fit, is a ``ValueError``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.functional.kl import k1
from lit_rlhf.functional.masking import keep
from lit_rlhf.functional.moments import RunningMoments


def shape_scores(
    scores: Tensor, *, moments: RunningMoments, normalize: bool = False, scale: bool = False, clip: float | None = None
) -> Tensor:
    """``clip((r − μ) / σ, −c, c)`` with ``normalize``, ``clip(r / σ, −c, c)`` with ``scale``, else ``clip(r, −c, c)``.

    The paper's moments already include this batch: update them first. Source: paper eq. 18 and Figure 5, details 4-5.

    Args:
        scores: r.
        moments: μ and σ of all raw scores so far.
        normalize: Subtract the mean and divide by the standard deviation; ``scale`` adds nothing to it.
        scale: Divide by the standard deviation.
        clip: c, positive; None does not clip.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"`clip` ({clip}) must be positive, or None for no clipping.")
    shaped = scores.float()
    if normalize:
        shaped = shaped - moments.mean
    if normalize or scale:
        shaped = shaped / moments.std
    return shaped if clip is None else shaped.clamp(-clip, clip)


def penalize_missing_eos(
    scores: Tensor, ended: Tensor, *, penalty: float | None = None, replacement: float | None = None
) -> Tensor:
    """Lower, or replace, the score of responses that the length limit cut; with neither given, nothing changes.

    Args:
        scores: One per response.
        ended: True where the response has its EOS, ``(B,)`` bool.
        penalty: Subtracted from the score, not negative.
        replacement: Takes the place of the score; not together with ``penalty``.
    """
    if ended.dtype != torch.bool or ended.shape != scores.shape:
        raise ValueError(f"`ended` must be bool {tuple(scores.shape)}, got {ended.dtype} {tuple(ended.shape)}.")
    if penalty is not None and replacement is not None:
        raise ValueError(f"Give `penalty` ({penalty}) or `replacement` ({replacement}), not both.")
    if penalty is not None and penalty < 0:
        raise ValueError(f"`penalty` ({penalty}) is subtracted and must not be negative.")
    wide = scores.float()
    if replacement is not None:
        return torch.where(ended, wide, torch.full_like(wide, replacement))
    return torch.where(ended, wide, wide - (penalty or 0.0))


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    token_scores: Tensor | None = None,
) -> Tensor:
    """The KL penalty at every response token, and the score at the last one.

    ``r_t = −η (log π(y_t) − log π_ref(y_t)) + [t = t_last] s + s_t``

    Zero outside the mask; a row without any token gets no score. Source: paper eq. 19 (detail 1), with s_t an optional
    per-token (process) reward.

    Args:
        scores: s, shaped.
        logprobs: Under the policy that drew the tokens, ``(B, T)``.
        ref_logprobs: Under the reference, ``(B, T)``.
        mask: Response tokens.
        kl_coef: η, not negative.
        token_scores: s_t, ``(B, T)``, or None.
    """
    if scores.shape != mask.shape[:1] or mask.dim() != 2:
        raise ValueError(f"`scores` {tuple(scores.shape)} must be (B,) and `mask` {tuple(mask.shape)} (B, T).")
    if not kl_coef >= 0:
        raise ValueError(f"`kl_coef` ({kl_coef}) must not be negative.")
    penalty = -kl_coef * k1(keep(logprobs, mask), keep(ref_logprobs, mask))
    # response tokens from here to the end, this one included: 1 at the last token and at the gaps behind it
    later = mask.long().flip(1).cumsum(1).flip(1)
    last = mask & (later == 1)
    rewards = penalty + keep(scores.float().unsqueeze(1).expand(mask.shape), last)
    return rewards if token_scores is None else rewards + keep(token_scores, mask)
