"""The policy loss `cast`: the clipped objective on token advantages of either sign, in verl's registry."""

import numpy as np
import pytest
import torch
import verl  # noqa: F401  (registers the plugin)
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from verl_cast.checks.run import LOSSES_WITHOUT_TOKEN_SIGNS
from verl_cast.training.policy_loss import compute_policy_loss_cast

AGG_MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def actor_config(**kwargs):
    defaults = dict(
        strategy="fsdp2", ppo_micro_batch_size_per_gpu=1, rollout_n=8, clip_ratio_low=0.2, clip_ratio_high=0.28
    )
    return FSDPActorConfig(**{**defaults, **kwargs})


def tensors(seed=0, rows=6, length=9, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, length, generator=generator)
    log_prob = old + spread * torch.randn(rows, length, generator=generator)
    advantages = 1.2 * (2 * torch.rand(rows, length, generator=generator) - 1)
    mask = torch.rand(rows, length, generator=generator) < 0.8
    mask[0] = False
    return old, log_prob.requires_grad_(True), advantages, mask


@pytest.mark.parametrize("mode", AGG_MODES)
@pytest.mark.parametrize("weights", [False, True])
def test_value_and_gradient_equal_the_objective_token_by_token(mode, weights):
    old, log_prob, advantages, mask = tensors()
    is_weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) if weights else None
    loss, metrics = compute_policy_loss_cast(old, log_prob, advantages, mask, mode, actor_config(), is_weights)
    loss.backward()

    expected = np.zeros(mask.shape)
    gradient = np.zeros(mask.shape)  # of every token's term with respect to its log_prob
    clipped = 0
    for i, j in np.ndindex(*mask.shape):
        rho, A = float(torch.exp(log_prob.detach()[i, j] - old[i, j])), float(advantages[i, j])
        w = float(is_weights[i, j]) if weights else 1.0
        bounded = min(max(rho, 0.8), 1.28)
        expected[i, j] = -min(rho * A, bounded * A) * w
        is_clipped = bounded * A < rho * A
        gradient[i, j] = 0.0 if is_clipped else -rho * A * w
        clipped += bool(mask[i, j]) and is_clipped
    torch.testing.assert_close(loss.item(), agg_loss(torch.tensor(expected), mask, mode).item(), rtol=1e-5, atol=1e-6)
    terms = torch.zeros(mask.shape, requires_grad=True)
    agg_loss(terms, mask, mode).backward()
    torch.testing.assert_close(log_prob.grad, (torch.tensor(gradient) * terms.grad).float(), rtol=1e-5, atol=1e-6)
    assert metrics["actor/pg_clipfrac"] == pytest.approx(clipped / int(mask.sum()), abs=1e-6)
    assert set(metrics) == {"actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower"}


def test_it_is_verls_vanilla_loss_where_the_dual_clip_is_silent():
    """Loss and metrics are equal bit for bit where the ratio stays below clip_ratio_c."""
    old, log_prob, advantages, mask = tensors(spread=0.2)
    ours, our_metrics = compute_policy_loss_cast(old, log_prob, advantages, mask, "token-mean", actor_config())
    verls, verl_metrics = POLICY_LOSS_REGISTRY["vanilla"](
        old, log_prob, advantages, mask, "token-mean", actor_config(clip_ratio_c=100.0)
    )
    assert torch.equal(ours, verls) and our_metrics == verl_metrics


def test_global_batch_sizes_are_respected():
    """With half of the batch on each of two ranks, the mean over ranks is the loss of the whole batch."""
    old, log_prob, advantages, mask = tensors()
    whole, _ = compute_policy_loss_cast(old, log_prob, advantages, mask, "token-mean", actor_config())
    halves = []
    for rows in (slice(0, 3), slice(3, 6)):
        config = actor_config()
        config.global_batch_info.update(
            dp_size=2, batch_num_tokens=int(mask.sum()), global_batch_size=6, loss_scale_factor=None
        )
        half, _ = compute_policy_loss_cast(
            old[rows], log_prob[rows], advantages[rows], mask[rows], "token-mean", config
        )
        halves.append(half)
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_it_is_registered_as_cast_and_needs_a_config():
    assert get_policy_loss_fn("cast") is compute_policy_loss_cast
    with pytest.raises(ValueError, match="actor's config"):
        compute_policy_loss_cast(*tensors())


# Settings that some of verl's losses need besides the common ones.
EXTRA = {"dro": {"dro_beta": 0.1}}


@pytest.mark.parametrize("name", sorted(POLICY_LOSS_REGISTRY))
def test_which_losses_keep_the_signs_of_token_advantages(name):
    """Contract: on-policy, no loss pushes a token's log-prob against its advantage, except the refused losses."""
    if name == "bypass_mode":
        assert name in LOSSES_WITHOUT_TOKEN_SIGNS  # needs rollout log-probs in place of old ones
        return
    old, _, advantages, _ = tensors()
    log_prob = old.clone().requires_grad_(True)
    config = actor_config(policy_loss=PolicyLossConfig(loss_mode=name, **EXTRA.get(name, {})))
    loss, _ = POLICY_LOSS_REGISTRY[name](
        old, log_prob, advantages, torch.ones_like(old, dtype=torch.bool), "seq-mean-token-mean", config
    )
    loss.backward()
    push = -log_prob.grad * advantages
    keeps_signs = bool((push >= 0).all()) and bool((push > 0).float().mean() > 0.9)  # clip_cov drops a few tokens
    assert keeps_signs == (name not in LOSSES_WITHOUT_TOKEN_SIGNS)
