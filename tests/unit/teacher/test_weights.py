"""The self-teacher's weights on plain modules: copies, averages, swaps, costs, saving (on engines: test_engine.py)."""

import io

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import verl_cast
from verl_cast import TeacherConfig
from verl_cast.teacher import host_copy
from verl_cast.teacher.shards import trainable_shards
from verl_cast.teacher.weights import HostTeacher, build_teacher


class Router(torch.nn.Module):
    """Like Megatron's MoE layers: a bias that training moves without a gradient, and a buffer that is not copied."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2))
        self.frozen = torch.nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("expert_bias", torch.zeros(3))
        self.register_buffer("local_tokens_per_expert", torch.zeros(3))


class Shapes(torch.nn.Module):
    """Every kind of shard: long, one row, scalar, empty (more ranks than rows), strided, two dtypes."""

    def __init__(self):
        super().__init__()
        tensors = {
            "long": torch.randn(37, 5),
            "bf16": torch.randn(11, 3).bfloat16(),
            "row": torch.randn(1, 29),
            "scalar": torch.randn(()),
            "empty": torch.randn(0, 4),
            "strided": torch.randn(6, 9)[:, 2:6],
            "short": torch.randn(2),
            "more_bf16": torch.randn(40).bfloat16(),
        }
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor))

    @torch.no_grad()
    def move(self):
        for parameter in self.parameters():
            parameter.add_(torch.randn_like(parameter))


class Operations(TorchDispatchMode):
    """Records the operations on tensors. Copy number `fail_at`, counted from 0, writes garbage and raises."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.names, self.copies, self.fail_at = [], 0, fail_at

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.overloadpacket.__name__)
        if self.names[-1] == "copy_":
            self.copies += 1
            if self.copies - 1 == self.fail_at:
                args[0].fill_(7)
                raise MemoryError("injected")
        return operation(*args, **(kwargs or {}))


def bits(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def teacher(module, **config):
    return build_teacher(TeacherConfig(**config), module)


@torch.no_grad()
def behind(module, **config):
    """A teacher of the policy's weights, from which the policy has moved on."""
    own = teacher(module, **config)
    own.refresh(0)
    for tensor in trainable_shards(module).values():
        tensor.add_(1)
    own.policy_moved()
    return own


def test_chunks_keep_names_apart_and_bring_the_routers_bias():
    chunks = [Router(), Router()]
    shards = trainable_shards(chunks)
    assert sorted(shards) == [f"chunk{i}.{name}" for i in (0, 1) for name in ("expert_bias", "weight")]
    shards["chunk1.weight"].fill_(7)
    assert (chunks[1].weight == 7).all() and not (chunks[0].weight == 7).any(), "views of the live storage"


def test_a_swap_brings_the_bias_of_the_snapshot_back():
    module = Router()
    own = behind(module)
    moved = {name: t.clone() for name, t in module.state_dict().items()}
    with own.swapped_in():
        assert (module.expert_bias == 0).all()
        torch.testing.assert_close(module.weight, moved["weight"] - 1)
    assert all(torch.equal(t, moved[name]) for name, t in module.state_dict().items())


def test_an_average_in_half_precision_does_not_round_its_steps_away():
    """A step of 0.5 % is below the last bit of bfloat16. An average in bfloat16 would stay at the first policy."""
    module = torch.nn.Linear(4, 4, bias=False).bfloat16()
    own = teacher(module, weights="ema", ema_decay=0.995)
    with torch.no_grad():
        module.weight.fill_(1.0)
        own.refresh(0)
        module.weight.fill_(1.0078125)  # the next bfloat16 value
    own.policy_moved()
    for step in range(1, 201):
        own.refresh(step)
    assert own.host_bytes == module.weight.nbytes * 3, "the copy, and the average in float32"
    with own.swapped_in():
        assert (module.weight == 1.0078125).all(), "63 % of the way, rounded to the nearest"
    average = own.state_dict(0)["average"]["weight"]
    torch.testing.assert_close(average, torch.full_like(average, 1 + 0.0078125 * (1 - 0.995**200)), rtol=1e-6, atol=0)


def test_the_age_and_the_refresh_phase():
    own = teacher(torch.nn.Linear(2, 2), refresh_interval=3)
    assert [step for step in range(10) if own.refresh_due(step) and not own.refresh(step)] == [0, 3, 6, 9]
    assert [own.age(step) for step in (9, 10, 12)] == [0, 1, 3]
    # A skipped step (a resumed run with another interval) does not shift the phase.
    late = teacher(torch.nn.Linear(2, 2), refresh_interval=3)
    late.refresh(4)
    assert [late.refresh_due(step) for step in (5, 6, 7)] == [False, True, True]


def test_under_lora_the_initial_policy_is_the_base_model():
    new, loaded, full = (
        build_teacher(TeacherConfig(weights="initial"), torch.nn.Linear(2, 2), has_adapter, adapter_is_new)
        for has_adapter, adapter_is_new in ((True, True), (True, False), (False, False))
    )
    assert [own.refresh_due(0) for own in (new, loaded, full)] == [False, False, True], "only a copy has to be taken"
    full.refresh(0)
    assert not any(own.refresh_due(step) for own in (new, loaded, full) for step in (1, 50))
    assert [own.without_adapter for own in (new, loaded, full)] == [True, True, False]
    assert [own.host_bytes > 0 for own in (new, loaded, full)] == [False, False, True]
    # A new adapter adds nothing to the base model. A loaded one does, so the base model is not the policy.
    assert [own.is_policy(0) for own in (new, loaded, full)] == [True, False, True]
    assert [own.age(30) for own in (new, loaded, full)] == [30, None, 30]
    new.policy_moved()
    assert not new.is_policy(1)


def test_the_routers_bias_has_its_final_type_before_it_is_copied():
    """Megatron casts it to the model's half precision, and back to float32 in the router's first forward."""

    class MegatronRouter(Router):
        def _maintain_float32_expert_bias(self):
            self.expert_bias.data = self.expert_bias.data.float()

    module = MegatronRouter().bfloat16()
    assert trainable_shards(module)["expert_bias"].dtype == torch.float32


def test_a_parameter_that_changed_its_type_stops_the_swap():
    """A swap through a copy in another type would round the policy."""
    module = torch.nn.Linear(2, 2)
    own = behind(module)
    module.bfloat16()
    with pytest.raises(RuntimeError, match=r"bias is \(2,\) torch.bfloat16, the teacher's copy of it .*float32"):
        with own.swapped_in():
            pass


def test_the_policy_comes_back_also_where_names_share_storage():
    module = torch.nn.Linear(2, 2, bias=False)
    module.other = torch.nn.Parameter(module.weight.detach())  # the same memory
    own = behind(module)
    policy = module.weight.detach().clone()
    with own.swapped_in():
        assert not torch.equal(module.weight, policy)
    assert torch.equal(module.weight, policy)


def test_a_failing_restoration_goes_on_with_the_other_parameters(monkeypatch):
    module = torch.nn.Linear(2, 2)
    own = behind(module)
    policy = module.weight.detach().clone()
    stock = HostTeacher._swap

    def failing_for_the_bias(live, host):
        if live.numel() == 2:
            raise MemoryError("injected")
        stock(live, host)

    with pytest.raises(MemoryError, match="injected"), own.swapped_in():
        monkeypatch.setattr(HostTeacher, "_swap", staticmethod(failing_for_the_bias))
    assert torch.equal(module.weight, policy), "restored, though the bias, which comes first, could not be"


def test_all_ranks_have_one_teacher():
    from verl_cast.training.trainer import _check_one_teacher

    rank = {"version": verl_cast.__version__, "host_bytes": 8, "taken_at": 3, "restored": True}
    _check_one_teacher([rank, rank])
    with pytest.raises(RuntimeError, match=r"ranks \[1\].*cast_self_teacher_"):
        _check_one_teacher([rank, {**rank, "restored": False}])
    with pytest.raises(RuntimeError, match="one version on every node"):
        _check_one_teacher([rank, {**rank, "version": "0.0"}])


def test_no_pass_before_there_are_weights():
    with pytest.raises(RuntimeError, match=r"refresh\(\) comes before"), teacher(torch.nn.Linear(2, 2)).swapped_in():
        pass


@pytest.mark.parametrize("piece_bytes", [1, 16, 60, 2**22])
@pytest.mark.parametrize("weights", ["snapshot", "ema", "initial"])
def test_copy_and_parameters_trade_places_bit_for_bit(monkeypatch, weights, piece_bytes):
    """The copy is never an alias, and the average is formed in float32 and rounded to the parameters' type."""
    monkeypatch.setattr(host_copy, "PIECE_BYTES", piece_bytes)
    torch.manual_seed(0)
    module = Shapes()
    parameters = dict(module.named_parameters())
    own = teacher(module, weights=weights, refresh_interval=2, ema_decay=0.5)
    expected = {name: tensor.float() for name, tensor in bits(parameters).items()}
    for step in (0, 1, 2, 3):
        if step > 0:
            module.move()
            own.policy_moved()
        if own.refresh_due(step):
            own.refresh(step)
        for name, tensor in bits(parameters).items():
            if weights == "ema":
                expected[name] = torch.lerp(expected[name], tensor.float(), 0.5)
            elif weights == "snapshot" and step == 2:
                expected[name] = tensor.float()
        copy = {name: expected[name].to(tensor.dtype) for name, tensor in parameters.items()}
        assert same_bits(own.state_dict(step - 1)["parameters"], copy)
        policy = bits(parameters)
        with own.swapped_in():
            assert same_bits(bits(parameters), copy)
        assert same_bits(bits(parameters), policy) and same_bits(own.state_dict(step - 1)["parameters"], copy)


@pytest.mark.parametrize("piece_bytes", [16, 2**22])
def test_a_fault_at_any_copy_of_the_swap_leaves_policy_and_teacher_as_they_were(monkeypatch, piece_bytes):
    monkeypatch.setattr(host_copy, "PIECE_BYTES", piece_bytes)
    module = Shapes()
    own = behind(module)
    policy, copy = bits(dict(module.named_parameters())), bits(own.state_dict(0)["parameters"])
    assert not same_bits(policy, copy)
    going_in = Operations()
    with going_in, own.swapped_in():
        copies = going_in.copies
    assert copies >= 2 * 7, "every parameter that is not empty, out and in"
    for fail_at in range(copies):
        with pytest.raises(MemoryError, match="injected"), Operations(fail_at), own.swapped_in():
            pytest.fail("the fault must hit on the way in")
        assert same_bits(bits(dict(module.named_parameters())), policy), f"copy {fail_at} of {copies}"
        assert same_bits(own.state_dict(0)["parameters"], copy), f"copy {fail_at} of {copies}"


def test_a_swap_allocates_nothing_and_computes_nothing():
    own = behind(Router())
    with Operations() as seen, own.swapped_in():
        pass
    assert "copy_" in seen.names
    assert set(seen.names) <= {"copy_", "detach", "view", "slice", "split", "alias", "_unsafe_view"}, set(seen.names)


def test_the_current_policy_as_teacher_costs_nothing():
    module = Shapes()
    own = teacher(module, weights="current")
    with Operations() as seen:
        for step in range(3):
            assert not own.refresh_due(step)
            with own.swapped_in():
                pass
            own.policy_moved()
    assert seen.names == [] and own.host_bytes == 0
    assert own.take_cost() == {"refresh_seconds": 0, "refresh_bytes": 0, "swap_seconds": 0, "swap_bytes": 0}
    # A snapshot that still equals the policy costs no swap either.
    own = teacher(module)
    own.refresh(0)
    with Operations() as seen, own.swapped_in():
        pass
    assert seen.names == [] and own.take_cost()["swap_bytes"] == 0


@pytest.mark.parametrize("weights", ["snapshot", "ema"])
def test_costs_are_in_proportion_to_what_is_trained(weights):
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    module[0].requires_grad_(False)
    shard = sum(p.nbytes for p in module[1].parameters())
    own = teacher(module, weights=weights, refresh_interval=1)
    own.refresh(0)
    cost = own.take_cost()
    assert (cost["refresh_bytes"], cost["swap_bytes"], cost["swap_seconds"]) == (shard, 0, 0)
    assert cost["refresh_seconds"] > 0 and own.host_bytes == shard
    with torch.no_grad():
        module[1].weight.add_(1)
    own.policy_moved()
    with own.swapped_in():
        pass
    cost = own.take_cost()
    assert (cost["refresh_bytes"], cost["refresh_seconds"], cost["swap_bytes"]) == (0, 0, 4 * shard)
    assert cost["swap_seconds"] > 0
    own.refresh(1)
    assert own.take_cost()["refresh_bytes"] == shard
    assert not any(own.take_cost().values()), "counted once"


def test_a_saved_copy_takes_its_own_bytes_on_the_disk():
    """Its tensors share one buffer. The file must hold the buffer once, not once per tensor."""
    module = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
    own = teacher(module)
    own.refresh(0)
    file = io.BytesIO()
    torch.save(own.state_dict(0), file)
    largest = 256 * 256 * 4
    assert own.host_bytes < file.tell() < own.host_bytes + largest + 16384
    file.seek(0)
    other = teacher(torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8))))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same_bits(other.state_dict(0)["parameters"], own.state_dict(0)["parameters"])


def test_a_file_of_separate_tensors_is_read_too():
    """Earlier versions of this package wrote such files."""
    module = Shapes()
    own = teacher(module, weights="ema")
    own.refresh(0)
    state = own.state_dict(0)
    state["parameters"] = {name: tensor + 1 for name, tensor in state["parameters"].items()}
    state["average"] = {name: tensor + 1 for name, tensor in state["average"].items()}
    own.load_state_dict(state)
    assert same_bits(own.state_dict(0)["parameters"], state["parameters"])
    assert same_bits(own.state_dict(0)["average"], state["average"])
