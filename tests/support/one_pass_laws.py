"""Laws of the passes over a batch, on the real shards of engine_laws.py: rows left out, one loading, one pass."""

import dataclasses
import functools

import pytest
import torch
from verl.utils import tensordict_utils as tu

from verl_cast import CastConfig, wire
from verl_cast.advantage.base import BaseAdvantage
from verl_cast.advantage.cast import CastRule
from verl_cast.advantage.compute import token_advantage


def check_skipped_rows(this, half_precision: bool) -> None:
    """Rows that are not scored cost no forward, and change nothing for the others, whatever the other ranks score."""
    this.init_teacher(context="plain")
    all_rows = this.teacher_log_probs()
    scored = torch.tensor([False, True, False, False])
    if this.engine.get_data_parallel_rank() > 0:
        scored = torch.zeros(4, dtype=torch.bool)
    this.data[wire.SCORED] = scored
    some_rows = this.teacher_log_probs()
    this.data[wire.SCORED] = torch.ones(4, dtype=torch.bool)
    if some_rows is None:
        return
    row = torch.repeat_interleave(torch.arange(4), this.data["responses"].offsets().diff())
    chunks = isinstance(this.engine.module, list) and len(this.engine.module) > 1  # scores all rows
    went_through = {number for number in range(4) if (some_rows[row == number] != 0).all()}
    packed = this.worker.actor.engine_config.use_dynamic_bsz
    assert len(went_through) == (4 if chunks else 1 if packed else 2), "as many as fill the micro-batches, no more"
    of_scored = scored[row]
    torch.testing.assert_close(some_rows[of_scored], all_rows[of_scored], rtol=0, atol=0.2 if half_precision else 1e-5)


def check_one_pass(ranks: list, half_precision: bool) -> None:
    """The update that forms the gap itself does what an update after two passes does, here with KL in the loss."""
    one, two = ranks
    value = torch.tensor([0.7, -1.0, 1.0, -0.7])
    base = BaseAdvantage(value, value > 0)
    for this in ranks:
        this.init_teacher(context="plain")
        this.update()  # away from the teacher
    before = one.parameters()
    assert all(torch.equal(tensor, before[name]) for name, tensor in two.parameters().items())

    # -- both passes in one call, which loads the parameters once: what the two calls give
    data = two.data.clone()
    tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False)
    output = two.worker.compute_log_prob_with_teacher(data)
    teacher, old = two.teacher_log_probs(), two.log_probs()
    if output is not None:
        assert torch.equal(output["teacher_log_probs"].values(), teacher)
        assert torch.equal(two.responses_of(output["log_probs"]), old)
    passes = two.handed_out(None if output is None else {"old": old, "teacher": teacher})
    old, teacher = (two.nested(passes[name]) for name in ("old", "teacher"))

    # -- a KL term, to log-probs near the policy's
    reference = two.nested(
        old.values() + 0.1 * torch.randn(old.values().shape, generator=torch.Generator().manual_seed(1))
    )
    for this in ranks:
        stock_loss = this.worker.actor.loss_fn
        config = dataclasses.replace(stock_loss.keywords["config"], use_kl_loss=True, kl_loss_coef=0.5)
        this.worker.actor.set_loss_fn(functools.partial(stock_loss.func, config=config))
        this.data["ref_log_prob"] = reference

    # -- two passes: advantages from both, then the update
    mask = two.data["response_mask"].to_padded_tensor(0)
    advantages = token_advantage(
        CastRule(CastConfig()), base, mask, old.to_padded_tensor(0.0), teacher.to_padded_tensor(0.0)
    ).advantages
    lengths = two.data["responses"].offsets().diff()
    advantages = torch.cat([row[:length] for row, length in zip(advantages, lengths, strict=True)])
    two.update(old_log_probs=old, advantages=two.nested(advantages))

    # -- one pass: the teacher's, then the update
    update = {wire.BASE: base.value, wire.CORRECT: base.correct, wire.SCORED: torch.ones(4, dtype=torch.bool)}
    one.update_in_one_pass(**update, teacher_log_probs=teacher)
    kept = after_update(one)
    assert (kept is None) == (output is None)
    if kept is not None:
        assert torch.equal(one.responses_of(kept["log_probs"]), old.values())
        got, expected = (this.responses_of(values["entropy"]) for this, values in ((one, kept), (two, output)))
        torch.testing.assert_close(got, expected, rtol=0, atol=5e-2 if half_precision else 1e-5)
    after_one, after_two = one.parameters(), two.parameters()
    assert max((after_two[name] - before[name]).abs().max().item() for name in before) > 1e-3, "the policy must move"
    # On this CPU the update's forward has the very bits of the pass, so that one pass does exactly what two do.
    assert all(torch.equal(after_one[name], after_two[name]) for name in after_two)

    # -- the log-probs are handed out once; then there are passes again
    with pytest.raises(RuntimeError, match="asked for without such an update"):
        after_update(one)
    again = one.log_probs()
    if again is not None:
        assert not torch.equal(again, one.responses_of(kept["log_probs"])), "after the update the policy is another"

    # -- a teacher of the policy's very weights in the student's context: no gap, in micro-batches other than those of
    # the passes, and with weights that were exchanged
    settings, overridden = one.worker.actor.engine_config, {}
    for name in ("micro_batch_size_per_gpu", "max_token_len_per_gpu"):
        overridden[name] = getattr(settings, name)
    settings.micro_batch_size_per_gpu = 1
    if settings.use_dynamic_bsz:
        settings.max_token_len_per_gpu //= 2
    one.init_teacher(context="same")
    one.worker.self_teacher.policy_moved()
    teacher = one.teacher_log_probs()
    passes = one.handed_out(None if teacher is None else {"teacher": teacher})
    one.update_in_one_pass(**update, teacher_log_probs=one.nested(passes["teacher"]))
    kept = after_update(one)
    if kept is not None:
        assert torch.equal(one.responses_of(kept["log_probs"]), teacher), "bit for bit"
    for name, value in overridden.items():
        setattr(settings, name, value)

    # -- no gap by construction, the entropy in the loss too, rows in another order
    expected = one.log_probs()
    shuffled = {"calculate_entropy": True, "dataloader_kwargs": {"shuffle": True}}
    one.update_in_one_pass(settings=shuffled, gap_is_zero=True, **update)
    kept = after_update(one)
    if kept is not None:
        got = one.responses_of(kept["log_probs"])
        torch.testing.assert_close(got, expected, rtol=0, atol=0.2 if half_precision else 1e-5)
        assert (one.responses_of(kept["entropy"]) > 0).all()


def after_update(this):
    """What the trainer asks for after a one-pass update."""
    return this.worker.log_probs_of_update(this.data.clone())
