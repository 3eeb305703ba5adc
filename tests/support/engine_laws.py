"""The laws of the self-teacher on verl's real actor worker, one function per law.

`main(DIRECTORY, ENGINE, NAMES, OVERRIDE, ...)` is one rank, which ranks.py forks. It checks the named laws in order and
prints `law NAME: holds` for each. It stops at the first failure. A law can run by itself: what it needs of an earlier
worker, `Setting` makes when it is first asked for.
"""

import dataclasses
import functools
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import NonTensorStack
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from worker_rank import (
    Rank,
    expect_error,
    fail_in_a_layer,
    full_model,
    holds_storage,
    independent_log_probs,
    new_directory,
    same,
    same_bits,
    swapped_in_parameters,
    teacher_file,
)

from verl_cast import CastConfig, wire
from verl_cast.advantage.base import ALL_WRONG, BaseAdvantage
from verl_cast.advantage.cast import CastRule
from verl_cast.advantage.compute import token_advantage
from verl_cast.teacher.saved import load, path_of, save
from verl_cast.teacher.weights import build_teacher

EMA_DECAY = 0.75
NOISE_FLOOR = 0.125  # nats, as if it had been measured


@dataclass
class Setting:
    """State that the laws share: the layout, its worker, and results of the first laws."""

    directory: Path
    engine: str
    overrides: list[str]
    this: Rank
    host_bytes: int = 0
    initial: dict[str, torch.Tensor] | None = None  # parameters before the first update
    first_log_probs: torch.Tensor | None = None  # of the policy with them
    after_one: dict[str, torch.Tensor] | None = None  # parameters after the first update

    def start(self) -> None:
        """A snapshot of the policy before its first update is the teacher, in the student's own context."""
        if self.initial is None:
            # The teacher is the first thing that reads a new worker's parameters, as in a run.
            self.host_bytes = self.this.init_teacher(context="same", refresh_interval=2)["host_bytes"]
            self.initial = self.this.parameters()
            self.first_log_probs = self.this.log_probs()

    def update_once(self) -> None:
        """The policy is one update further than the teacher."""
        self.start()
        if self.after_one is None:
            self.this.update()
            self.after_one = self.this.parameters()

    @property
    def half_precision(self) -> bool:
        return "bf" in "".join(self.overrides)  # bf16, bfloat16

    @property
    def lora(self) -> bool:
        return any("lora_rank" in override for override in self.overrides)

    @property
    def pipelined(self) -> bool:
        return "pipeline" in " ".join(self.overrides)

    def new_rank(self, with_teacher: bool = True, detached: bool = False) -> Rank:
        return Rank(self.directory, self.engine, self.overrides, with_teacher, detached)

    @functools.cached_property
    def second(self) -> Rank:
        """Another worker, in the state of `this`: the same updates have been made. It has separate_async's class."""
        second = self.new_rank(detached=True)
        second.init_teacher(context="same")
        for _ in range(self.this.num_updates):
            second.update()
        return second


LAWS: dict[str, Callable[[Setting], None]] = {}


def law(function: Callable[[Setting], None]) -> Callable[[Setting], None]:
    LAWS[function.__name__] = function
    return function


# -------------------------------------------------------------------------------------------- weights, context `same`


@law
def the_host_holds_one_copy_of_the_trainable_shard(setting: Setting) -> None:
    """The host holds one copy of the trainable shard."""
    setting.start()
    assert setting.host_bytes == sum(t.nbytes for t in setting.initial.values())


@law
def equal_weights_on_equal_tokens_give_equal_log_probs(setting: Setting) -> None:
    """Equal weights on equal tokens give equal log-probs, bit for bit."""
    setting.start()
    this = setting.this
    assert this.worker.prepare_self_teacher(0) == {"is_policy": True, "age": 0, "noise_floor": None}
    assert same(this.teacher_log_probs(), setting.first_log_probs)


@law
def teacher_log_probs_are_those_of_its_weights_bit_for_bit(setting: Setting) -> None:
    """Teacher log-probs are those of its weights, bit for bit."""
    setting.update_once()
    this, worker = setting.this, setting.this.worker
    assert not same_bits(setting.initial, setting.after_one), "the update must move the policy"
    # A second update before the next weight sync (separate_async): old log-probs are still those of step 0.
    assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": 0, "noise_floor": None}
    assert worker.prepare_self_teacher(1) == {"is_policy": False, "age": 1, "noise_floor": None}
    assert same(this.teacher_log_probs(), setting.first_log_probs)
    policy_log_probs = this.log_probs()
    assert policy_log_probs is None or not torch.equal(policy_log_probs, setting.first_log_probs)


@law
def the_policy_is_bit_identical_after_the_pass(setting: Setting) -> None:
    """The policy is bit-identical after the pass."""
    setting.update_once()
    setting.this.teacher_log_probs()
    assert same_bits(setting.this.parameters(), setting.after_one)


@law
def the_noise_floor_is_the_policys_and_far_below_an_update(setting: Setting) -> None:
    """The noise floor is the policy's, and far below an update."""
    setting.update_once()
    this = setting.this
    policy_log_probs, again = this.log_probs(), this.log_probs_again()
    if again is not None:
        noise = (again - policy_log_probs).abs().max()
        assert noise < 0.2 * (setting.first_log_probs - policy_log_probs).abs().max(), f"noise {noise}"
        assert setting.half_precision or noise < 1e-4, f"noise {noise}"


@law
def the_cost_is_told_and_offloaded_parameters_leave_again(setting: Setting) -> None:
    """The pass reports its cost, and offloaded parameters leave again."""
    setting.update_once()
    this = setting.this
    this.teacher_log_probs()
    cost = this.worker.self_teacher_cost()
    assert cost["host_bytes"] == setting.host_bytes and cost["seconds"] > 0
    assert cost["peak_bytes"] == 0 or get_device_name() != "cpu", "on a CPU no device has a peak"
    if this.engine.is_param_offload_enabled and setting.engine == "megatron":
        assert not holds_storage(this)
        # Without this error, access outside of the engine's eval_mode() would crash the process.
        with expect_error(RuntimeError, "offloaded"):
            this.live()


@law
def an_exception_in_the_pass_or_in_the_swap_leaves_the_policy_as_it_was(setting: Setting) -> None:
    """An exception in the pass or in the swap leaves the policy as it was.

    Every rank raises, first instead of the forward, then in the middle of the swap.
    """
    setting.update_once()
    this, policy = setting.this, setting.after_one
    teacher, engine = type(this.worker.self_teacher), this.engine
    stock_infer, stock_swap = engine.infer_batch, teacher._swap

    def broken_forward(*args, **kwargs):
        assert not same_bits(this.live(), policy), "the fault must hit while the teacher is in"
        raise RuntimeError("injected in the forward")

    engine.infer_batch = broken_forward
    with expect_error(RuntimeError, "injected in the forward"):
        this.teacher_log_probs()
    engine.infer_batch = stock_infer
    assert same_bits(this.parameters(), policy), "an exception in the forward leaves the policy as it was"

    calls = []

    def failing_swap(live, host):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("injected in the swap")
        stock_swap(live, host)

    if len(policy) >= 3:
        teacher._swap = staticmethod(failing_swap)
        with expect_error(RuntimeError, "injected in the swap"):
            this.teacher_log_probs()
        teacher._swap = staticmethod(stock_swap)
    assert same_bits(this.parameters(), policy), "an exception in the middle of the swap leaves the policy as it was"
    assert same(this.teacher_log_probs(), setting.first_log_probs), "and the teacher"


@law
def a_refresh_is_due_after_every_second_step_and_only_then(setting: Setting) -> None:
    """A refresh is due after every second step, and only then."""
    setting.update_once()
    this, teacher = setting.this, setting.this.worker.self_teacher
    assert not teacher.refresh_due(1) and teacher.refresh_due(2) and teacher.refresh_due(3)
    assert this.worker.prepare_self_teacher(2) == {"is_policy": True, "age": 0, "noise_floor": None}
    assert same(this.teacher_log_probs(), this.log_probs())


@law
def the_optimizer_does_the_same_with_and_without_a_pass_in_between(setting: Setting) -> None:
    """The optimizer does the same with and without a pass in between."""
    setting.update_once()
    setting.this.teacher_log_probs()
    setting.this.update()
    twin = setting.new_rank(with_teacher=False)
    twin.update()
    twin.update()
    assert same_bits(setting.this.parameters(), twin.parameters())


# ------------------------------------------------------------------------------------------- contexts, rows, one pass


@law
def other_contexts_equal_an_independent_forward_of_the_unsharded_model(setting: Setting) -> None:
    """In other contexts log-probs equal those of an independent forward of the unsharded model."""
    this, module, policy = setting.this, full_model(setting.this, setting.lora), setting.this.parameters()
    for context in ("plain", str(setting.directory / "context.jinja")):
        this.init_teacher(context=context)
        got = this.teacher_log_probs()
        if got is not None:
            expected = torch.cat(independent_log_probs(module, this.worker.teacher_pass.context, this.data))
            tolerance = 1e-1 if setting.half_precision else 1e-4
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        assert same_bits(this.parameters(), policy)


@law
def rows_that_are_not_scored_cost_no_forward_and_change_nothing(setting: Setting) -> None:
    """Rows that are not scored cost no forward and change nothing, whatever the other ranks score."""
    this = setting.this
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
    chunks = isinstance(this.engine.module, list) and len(this.engine.module) > 1  # virtual pipeline: scores all rows
    went_through = {number for number in range(4) if (some_rows[row == number] != 0).all()}
    packed = this.worker.actor.engine_config.use_dynamic_bsz
    assert len(went_through) == (4 if chunks else 1 if packed else 2), "as many as fill the micro-batches, no more"
    of_scored, tolerance = scored[row], 0.2 if setting.half_precision else 1e-5
    torch.testing.assert_close(some_rows[of_scored], all_rows[of_scored], rtol=0, atol=tolerance)


@law
def one_pass_trains_as_two_passes_do_bit_for_bit(setting: Setting) -> None:
    """One pass trains as two passes do, bit for bit, with KL in the loss and a measured dead zone."""
    ranks = one, two = setting.second, setting.this
    value = torch.tensor([0.7, -1.0, 1.0, -0.7])
    base = BaseAdvantage(value, value > 0, torch.full((4,), ALL_WRONG))
    update = {
        wire.BASE: base.value,
        wire.CORRECT: base.correct,
        wire.KIND: base.kind,
        wire.SCORED: torch.ones(4, dtype=torch.bool),
    }
    for this in ranks:
        this.init_teacher(context="plain", settings={"gap_deadzone": "noise"})
        this.update()  # moves the policy away from the teacher
    before = one.parameters()
    assert same_bits(two.parameters(), before)

    # -- both passes in one call, which loads the parameters once: same results as two calls
    data = two.data.clone()
    tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False, **{wire.STAGE: wire.WITH_TEACHER})
    output = two.worker.compute_log_prob(data)
    teacher, old = two.teacher_log_probs(), two.log_probs()
    if output is not None:
        assert torch.equal(output[wire.TEACHER_LOG_PROBS].values(), teacher)
        assert torch.equal(two.responses_of(output["log_probs"]), old)
    passes = two.handed_out(None if output is None else {"old": old, "teacher": teacher})
    old, teacher = (two.nested(passes[name]) for name in ("old", "teacher"))

    # -- a KL term, with reference log-probs near the policy's
    noise = torch.randn(old.values().shape, generator=torch.Generator().manual_seed(1))
    stock_loss = two.worker.actor.loss_fn
    for this in ranks:
        config = dataclasses.replace(stock_loss.keywords["config"], use_kl_loss=True, kl_loss_coef=0.5)
        this.worker.actor.set_loss_fn(functools.partial(stock_loss.func, config=config))
        this.data["ref_log_prob"] = two.nested(old.values() + 0.1 * noise)

    # -- two passes: advantages from both, then the update
    mask = two.data["response_mask"].to_padded_tensor(0)
    padded = (old.to_padded_tensor(0.0), teacher.to_padded_tensor(0.0))
    noise_floor = float((teacher.values() - old.values()).abs().median())  # as if it had been measured
    one.worker.keep_noise_floor(noise_floor)
    rule = CastRule(CastConfig(gap_deadzone="noise"), noise_floor=noise_floor)
    shaped = token_advantage(rule, base, mask, *padded)
    assert (shaped.gap != shaped.raw_gap).any() and (shaped.gap != 0).any()
    advantages = shaped.advantages
    lengths = two.data["responses"].offsets().diff()
    advantages = torch.cat([row[:length] for row, length in zip(advantages, lengths, strict=True)])
    two.update(old_log_probs=old, advantages=two.nested(advantages))
    two.worker.actor.set_loss_fn(stock_loss)
    del two.data["ref_log_prob"]

    # -- one pass: the teacher's, then the update
    one.update_in_one_pass(**update, teacher_log_probs=teacher)
    kept = one.log_probs_of_update()
    assert (kept is None) == (output is None)
    if kept is not None:
        assert torch.equal(one.responses_of(kept["log_probs"]), old.values())
        got, expected = (this.responses_of(values["entropy"]) for this, values in ((one, kept), (two, output)))
        torch.testing.assert_close(got, expected, rtol=0, atol=5e-2 if setting.half_precision else 1e-5)
    after_one, after_two = one.parameters(), two.parameters()
    moved = torch.cat([(after_two[name] - before[name]).flatten().float() for name in before])
    assert moved.abs().max() > 1e-3, "the policy must move"
    # On this CPU the update's forward gives the same bits as the pass, so one pass equals two exactly.
    assert same_bits(after_one, after_two)

    # -- the update's log-probs can be read once; afterwards a pass computes them
    with expect_error(RuntimeError, "asked for without such an update"):
        one.log_probs_of_update()
    with expect_error(KeyError, wire.ONE_PASS):  # no stage of this method, and none is taken for verl's own
        tu.assign_non_tensor(data, **{wire.STAGE: wire.ONE_PASS})
        one.worker.compute_log_prob(data)
    again = one.log_probs()
    if again is not None:
        assert not torch.equal(again, one.responses_of(kept["log_probs"])), "after the update the policy is another"

    # -- a teacher with the policy's own weights and the student's context: no gap. The weights are swapped, and the
    # micro-batches differ from those of the passes.
    engine_config, overridden = one.worker.actor.engine_config, {}
    for name in ("micro_batch_size_per_gpu", "max_token_len_per_gpu"):
        overridden[name] = getattr(engine_config, name)
    engine_config.micro_batch_size_per_gpu = 1
    if engine_config.use_dynamic_bsz:
        engine_config.max_token_len_per_gpu //= 2
    one.init_teacher(context="same")
    one.worker.self_teacher.policy_moved()
    teacher = one.teacher_log_probs()
    passes = one.handed_out(None if teacher is None else {"teacher": teacher})
    one.update_in_one_pass(**update, teacher_log_probs=one.nested(passes["teacher"]))
    kept = one.log_probs_of_update()
    if kept is not None:
        assert torch.equal(one.responses_of(kept["log_probs"]), teacher), "bit for bit"
    for name, value in overridden.items():
        setattr(engine_config, name, value)

    # -- gap_is_zero, with the entropy in the loss and rows in another order
    expected = one.log_probs()
    shuffled = {"calculate_entropy": True, "dataloader_kwargs": {"shuffle": True}}
    one.update_in_one_pass(settings=shuffled, gap_is_zero=True, **update)
    kept = one.log_probs_of_update()
    if kept is not None:
        got = one.responses_of(kept["log_probs"])
        torch.testing.assert_close(got, expected, rtol=0, atol=0.2 if setting.half_precision else 1e-5)
        assert (one.responses_of(kept["entropy"]) > 0).all()


@law
def a_restored_policy_reaches_the_next_forward(setting: Setting) -> None:
    """A restored policy reaches the next forward.

    separate_async with several updates between two weight syncs restores the old policy, and then the new one. verl's
    own worker fails this under FSDP1 on two ranks: the root's gathered parameters hide the restored shards.
    """
    on_cpu = get_device_name() == "cpu"
    if setting.this.engine.is_param_offload_enabled or (on_cpu and setting.engine != "fsdp"):
        return  # verl's copy of parameters that lie on the host is an alias; such runs are refused
    this, worker = setting.second, setting.second.worker
    this.init_teacher(context="same")
    worker.save_model_to_cpu(0)
    old = this.log_probs()
    this.update()
    new = this.log_probs()
    worker.save_model_to_cpu(1)
    worker.restore_model_from_cpu(0)
    assert same(this.log_probs(), old)
    worker.restore_model_from_cpu(1)
    assert same(this.log_probs(), new)
    assert new is None or not torch.equal(old, new)


# ---------------------------------------------------------------------------------------------------------- checkpoints


@law
def a_saved_teacher_comes_back_and_what_does_not_fit_is_named(setting: Setting) -> None:
    """A saved teacher comes back bit for bit, and what does not fit is named. verl's pruning removes it."""
    this, worker = setting.this, setting.this.worker
    directory = new_directory(setting.directory)
    this.init_teacher(context="same", refresh_interval=10)
    worker.keep_noise_floor(NOISE_FLOOR)
    snapshot_log_probs = this.teacher_log_probs()
    this.update()
    older, saved = directory / "global_step_2" / "actor", directory / "global_step_3" / "actor"
    worker.save_checkpoint(str(older), None, 2, 2)
    worker.save_checkpoint(str(saved), None, 3, 2)
    policy_log_probs = this.log_probs()

    # -- full disk: the teacher's file fails before verl's save, which would first remove the oldest checkpoint
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    stock_save, torch.save = torch.save, full_disk
    with expect_error((OSError, RuntimeError), "No space left"):  # of this rank, or of the one that writes
        worker.save_checkpoint(str(directory / "global_step_4" / "actor"), None, 4, 2)
    torch.save = stock_save
    assert teacher_file(this, saved).exists() and teacher_file(this, older).exists()

    this.update()
    worker.load_checkpoint(str(saved))
    this.init_teacher(completed_steps=3, context="same", refresh_interval=10)
    assert worker.prepare_self_teacher(3) == {"is_policy": False, "age": 3, "noise_floor": NOISE_FLOOR}
    assert same(this.log_probs(), policy_log_probs)
    assert same(this.teacher_log_probs(), snapshot_log_probs), "a resumed teacher gives the same bits"
    with expect_error(RuntimeError, "its weights is 'snapshot', this run's is 'ema'"):
        this.init_teacher(completed_steps=3, context="same", weights="ema")
    this.init_teacher(completed_steps=3, context="same", refresh_interval=10)

    # -- the next save prunes the oldest checkpoint, including its teacher
    torch.distributed.barrier()
    worker.save_checkpoint(str(directory / "global_step_5" / "actor"), None, 5, 2)
    torch.distributed.barrier()
    assert not older.exists() or not list(older.glob("*")), "verl prunes the directory as a whole"
    assert teacher_file(this, saved).exists()
    saved = directory / "global_step_5" / "actor"
    worker._resumed_from = str(saved)

    # -- older checkpoints have a file of every rank, and no noise floor in it
    file, writes = teacher_file(this, saved), this.worker._place.first_with_shard == this.rank
    state = torch.load(file, weights_only=True)
    torch.distributed.barrier()
    if writes:
        torch.save({key: value for key, value in state.items() if key != "noise_floor"}, file)
    torch.distributed.barrier()
    if not writes:
        shutil.copy(file, path_of(saved))
    this.init_teacher(completed_steps=5, context="same")
    assert same(this.teacher_log_probs(), snapshot_log_probs)
    assert worker.prepare_self_teacher(5)["noise_floor"] is None

    # -- half a file, another number of ranks
    torch.distributed.barrier()
    if writes:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    else:
        path_of(saved).unlink()
    torch.distributed.barrier()
    with expect_error(RuntimeError, "cannot be restored"):
        this.init_teacher(completed_steps=5, context="same")
    torch.distributed.barrier()
    if writes:
        file.rename(file.with_name(file.name.replace(f"world_size_{this.world_size}", "world_size_9")))
    torch.distributed.barrier()
    with expect_error(FileNotFoundError, "another number of ranks (cast_self_teacher_world_size_9_rank_0.pt)"):
        this.init_teacher(completed_steps=5, context="same")
    with expect_error(FileNotFoundError, "missing_state=snapshot"):
        this.init_teacher(completed_steps=5, context="same")
    this.init_teacher(completed_steps=5, context="same", missing_state="snapshot")
    assert same(this.teacher_log_probs(), this.log_probs())
    worker._resumed_from = None


@law
def every_distinct_shard_is_saved_once(setting: Setting) -> None:
    """Every distinct shard is saved once. A replica that cannot see the others' disk writes a file too."""
    this = setting.this
    this.init_teacher(context="same")
    this.update()
    directory, own = new_directory(setting.directory), this.parameters()
    save(this.worker.self_teacher, str(directory), this.worker._place.first_with_shard, 1)
    shards = [None] * this.world_size
    torch.distributed.all_gather_object(shards, {name: tensor.flatten().tolist() for name, tensor in own.items()})
    distinct = [rank for rank, shard in enumerate(shards) if shard not in shards[:rank]]
    assert sorted(directory.iterdir()) == sorted(path_of(directory, rank=rank) for rank in distinct)
    disk = new_directory(setting.directory) / f"of_rank_{this.rank}"
    save(this.worker.self_teacher, str(disk), this.worker._place.first_with_shard, 1)
    assert list(disk.iterdir()) == [path_of(disk)]
    with this.engine.eval_mode():
        assert load(this.worker.self_teacher, str(disk), this.worker._place.first_with_shard)


@law
def a_teacher_without_a_copy_keeps_the_noise_floor_alone(setting: Setting) -> None:
    """A teacher without a copy keeps only the noise floor."""
    this, worker = setting.this, setting.this.worker
    directory = new_directory(setting.directory)
    this.init_teacher(context="plain")
    worker.keep_noise_floor(NOISE_FLOOR)
    save(worker.self_teacher, str(directory), worker._place.first_with_shard, 1)
    worker._resumed_from = str(directory)
    told = this.init_teacher(completed_steps=5, context="plain", weights="current")
    assert told["restored"] is False
    assert worker.prepare_self_teacher(5) == {"is_policy": True, "age": 0, "noise_floor": NOISE_FLOOR}
    worker._resumed_from = str(directory / "nothing")
    this.init_teacher(completed_steps=5, context="plain", weights="current")
    assert worker.prepare_self_teacher(5)["noise_floor"] is None
    worker._resumed_from = None


# -------------------------------------------------------------------------------------------------------- other weights


@law
def ema_is_an_average_in_float32_that_moves_once_a_step(setting: Setting) -> None:
    """`ema` is an average in float32 that moves once a step, and is saved and restored."""
    this, worker = setting.this, setting.this.worker
    expected = {name: tensor.double() for name, tensor in this.parameters().items()}
    this.init_teacher(weights="ema", ema_decay=EMA_DECAY, context="same")
    assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": None, "noise_floor": None}
    for step in (1, 2):
        this.update()
        if step == 1:  # a second update before the next weight sync: old log-probs are still those of step 0
            assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": None, "noise_floor": None}
        assert worker.prepare_self_teacher(step) == {"is_policy": False, "age": None, "noise_floor": None}
        assert worker.prepare_self_teacher(step) == {"is_policy": False, "age": None, "noise_floor": None}, (
            "once a step"
        )
        for name, tensor in this.parameters().items():
            expected[name] = EMA_DECAY * expected[name] + (1 - EMA_DECAY) * tensor.double()
    policy = this.parameters()
    for name, tensor in swapped_in_parameters(this).items():
        tolerance = 1e-2 if tensor.itemsize == 2 else 1e-5
        torch.testing.assert_close(tensor.double(), expected[name], rtol=tolerance, atol=1e-7)
    assert not same_bits(swapped_in_parameters(this), policy)
    restored = build_teacher(worker.self_teacher.config, this.engine.module)
    with this.engine.eval_mode():
        restored.load_state_dict(worker.self_teacher.state_dict(2))
    own, other = worker.self_teacher.state_dict(2), restored.state_dict(2)
    assert all(same_bits(own[part], other[part]) for part in ("parameters", "average"))
    assert not restored.refresh_due(2) and restored.refresh_due(3)
    assert same_bits(this.parameters(), policy)


@law
def initial_weights_stay_and_under_lora_they_need_no_copy(setting: Setting) -> None:
    """`initial` weights stay, and under LoRA they need no copy."""
    this = setting.this
    told = this.init_teacher(weights="initial", context="same")
    assert (told["host_bytes"] == 0) == setting.lora
    # With LoRA the adapter is already trained here. That does not matter, as the worker restores no earlier run.
    at_start = this.log_probs(no_lora_adapter=setting.lora)
    this.update()
    assert this.worker.prepare_self_teacher(50) == {"is_policy": False, "age": 50, "noise_floor": None}
    assert same(this.teacher_log_probs(), at_start)
    now = this.log_probs()
    assert now is None or not torch.equal(now, at_start)


@law
def the_current_policy_as_teacher_holds_nothing(setting: Setting) -> None:
    """The current policy as teacher holds nothing."""
    this = setting.this
    assert this.init_teacher(weights="current", context="same")["host_bytes"] == 0
    this.update()
    assert this.worker.prepare_self_teacher(4) == {"is_policy": True, "age": 0, "noise_floor": None}
    assert same(this.teacher_log_probs(), this.log_probs())


# ------------------------------------------------------------------------------------------------------------- refusals


@law
def a_context_that_does_not_fit_is_named(setting: Setting) -> None:
    """A context that is too long, and rows with images outside of `same`, are named."""
    this = setting.this
    this.init_teacher(context="plain")
    model_config = this.worker.actor.model_config
    hf_config = model_config.hf_config.get_text_config()
    limit, hf_config.max_position_embeddings = hf_config.max_position_embeddings, 20
    with expect_error(ValueError, "max_position_embeddings allows 20"):
        this.teacher_log_probs()
    hf_config.max_position_embeddings = limit
    with expect_error(ValueError, "images or videos; only algorithm.cast.teacher.context=same"):
        this.teacher_log_probs(multi_modal_inputs=NonTensorStack({}, {}, {"pixel_values": torch.ones(1)}, {}))


@law
def a_token_budget_that_no_teacher_row_fits_is_raised(setting: Setting) -> None:
    """A token budget that no teacher row fits is raised. It changes the micro-batches and nothing else."""
    this = setting.this
    engine_config = this.worker.actor.engine_config
    if not engine_config.use_dynamic_bsz:
        return
    this.init_teacher(context="plain")
    expected, budget = this.teacher_log_probs(), engine_config.infer_max_token_len_per_gpu
    engine_config.infer_max_token_len_per_gpu = 20
    got = this.teacher_log_probs()
    engine_config.infer_max_token_len_per_gpu = budget
    if expected is not None:
        torch.testing.assert_close(got, expected, rtol=0, atol=0.2 if setting.half_precision else 1e-5)


@law
def an_exception_inside_a_layer_leaves_the_policys_shards_as_they_were(setting: Setting) -> None:
    """An exception inside a layer leaves the policy's shards as they were.

    It comes while FSDP has parameters gathered. FSDP stays in that state, so no forward follows. Pipeline stages are
    left out, since the next stage would wait for this one. engine_faults.py covers them.
    """
    if setting.pipelined:
        return
    this = setting.this
    this.init_teacher(context="same")
    this.update()
    moved = this.parameters()
    fail_in_a_layer(this)
    live = None if this.engine.is_param_offload_enabled else this.live()
    with expect_error(RuntimeError, "injected in a layer"):
        this.teacher_log_probs()
    live = live or this.parameters()
    assert same_bits(live, moved)


@law
def no_code_of_a_privileged_teacher_was_loaded(setting: Setting) -> None:
    """No code of a privileged teacher was loaded."""
    assert not [name for name in sys.modules if name.startswith("verl_cast.teacher.privileged")]


def main(directory: str, engine: str, names: str, *overrides: str) -> None:
    torch.manual_seed(0)
    this = Rank(Path(directory), engine, list(overrides))
    setting = Setting(Path(directory), engine, list(overrides), this)
    for name in names.split(","):
        print(f"law {name}: begins", flush=True)
        started = time.perf_counter()
        LAWS[name](setting)
        print(f"law {name}: holds ({time.perf_counter() - started:.1f} s)", flush=True)
