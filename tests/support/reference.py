"""A second implementation of CAST, from method sections 2 to 7, one float64 token at a time.

It shares no code with verl_cast.advantage and uses no tensors. Flips are overrides, as in section 5. It is slow and
simple on purpose.
"""

import math
import statistics


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def base(rewards: list[float], threshold=0.5, b_correct=1.0, b_wrong=1.0, eps=1e-6, norm_by_std=True) -> list[float]:
    """Section 2, one group."""
    correct = [r > threshold for r in rewards]
    if all(correct):
        return [b_correct] * len(rewards)
    if not any(correct):
        return [-b_wrong] * len(rewards)
    mean = statistics.fmean(rewards)
    std = statistics.stdev(rewards) if norm_by_std else None
    return [(r - mean) / (std + eps) if norm_by_std else r - mean for r in rewards]


def token(
    B: float,
    g: float,
    lam=1.0,
    positive_clip=(0.8, 1.05),
    negative_clip=(0.95, 1.2),
    flip="both",
    advantage_clip=1.2,
    deadzone=0.0,
) -> float:
    """Sections 4 to 6, one token."""
    if abs(g) <= deadzone:
        g = 0.0
    # 4. weight and sign-preserving shaping
    s = (B > 0) - (B < 0)
    low, high = positive_clip if B >= 0 else negative_clip
    w = clip(math.exp(clip(s * g, -20.0, 20.0)), low, high)
    advantage = B * max(0.0, 1.0 + lam * (w - 1.0))
    # 5. flipping overrides
    if B > 0 and g < 0 and flip in ("both", "correct"):
        d = clip(math.exp(min(-g, 20.0)), max(1.0, negative_clip[0]), negative_clip[1])
        advantage = -abs(B) * (1.0 + lam * (d - 1.0))
    if B < 0 and g > 0 and flip in ("both", "wrong"):
        u = clip(math.exp(min(g, 20.0)), max(1.0, positive_clip[0]), positive_clip[1])
        advantage = abs(B) * (1.0 + lam * (u - 1.0))
    # 6. final clip
    return advantage if advantage_clip is None else clip(advantage, -advantage_clip, advantage_clip)
