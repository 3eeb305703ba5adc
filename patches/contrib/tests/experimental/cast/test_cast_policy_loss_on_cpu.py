# Copyright 2026 Bytedance Ltd. and/or its affiliates
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The policy loss `cast`: -min(rho * A, clip(rho, 1 - 0.2, 1 + 0.28) * A), without dual clip."""

from math import log

import pytest
import torch

from verl.experimental.cast.training.policy_loss import compute_policy_loss_cast
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn
from verl.workers.config import FSDPActorConfig


def actor_config(**settings):
    settings = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, **settings}
    return FSDPActorConfig(strategy="fsdp2", rollout_n=8, ppo_micro_batch_size_per_gpu=1, **settings)


def one_token(ratio, advantage, loss=compute_policy_loss_cast, **settings):
    """The loss of one token, and its gradient with respect to the token's log-prob."""
    old, log_prob = torch.tensor([[-1.0]]), torch.tensor([[-1.0 + log(ratio)]], requires_grad=True)
    value, metrics = loss(
        old, log_prob, torch.tensor([[advantage]]), torch.ones(1, 1), "token-mean", actor_config(**settings)
    )
    value.backward()
    return value.item(), log_prob.grad.item(), metrics


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient",
    [
        (1.0, 1.2, -1.2, -1.2),
        (1.25, 1.0, -1.25, -1.25),
        (2.0, 1.0, -1.28, 0.0),  # clipped above
        (0.5, 1.0, -0.5, -0.5),
        (1.0, -1.2, 1.2, 1.2),
        (0.9, -1.0, 0.9, 0.9),
        (0.5, -1.0, 0.8, 0.0),  # clipped below
        (2.0, -1.0, 2.0, 2.0),
        (10.0, -1.0, 10.0, 10.0),  # no dual clip
    ],
)
def test_loss_and_gradient_for_either_sign_of_the_advantage(ratio, advantage, loss, gradient):
    value, slope, metrics = one_token(ratio, advantage)
    assert (value, slope) == (pytest.approx(loss, rel=1e-6), pytest.approx(gradient, rel=1e-6))
    assert metrics["actor/pg_clipfrac"] == (gradient == 0)
    assert metrics["actor/ppo_kl"] == pytest.approx(-log(ratio), abs=1e-6)
    assert metrics["actor/pg_clipfrac_lower"] == 0


def test_it_is_vanilla_without_the_dual_clip():
    vanilla = get_policy_loss_fn("vanilla")
    assert one_token(10.0, -1.0, vanilla, clip_ratio_c=3.0)[:2] == (3.0, 0.0)
    for ratio in (0.5, 1.0, 1.2, 2.0):
        for advantage in (1.0, -1.0):
            assert one_token(ratio, advantage) == one_token(ratio, advantage, vanilla, clip_ratio_c=3.0)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_aggregation_mask_and_rollout_weights(mode):
    generator = torch.Generator().manual_seed(0)
    old, advantages = -torch.rand(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    log_prob, weights = old + torch.randn(4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    value, _ = compute_policy_loss_cast(old, log_prob, advantages, mask, mode, actor_config(), weights)
    ratio = (log_prob - old).exp()
    tokens = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages) * weights
    torch.testing.assert_close(value, agg_loss(tokens, mask, mode))


def test_it_needs_the_actors_config():
    with pytest.raises(ValueError, match="clip_ratio_low"):
        compute_policy_loss_cast(*torch.zeros(4, 1, 1))
