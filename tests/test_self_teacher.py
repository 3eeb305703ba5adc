"""The self-teacher's weights on plain modules: what needs no engine (the engines themselves: test_engine.py)."""

import pytest
import torch

import verl_cast
from verl_cast import TeacherConfig
from verl_cast.self_teacher import SelfTeacher
from verl_cast.shards import trainable_shards


class Router(torch.nn.Module):
    """As in Megatron's MoE layers: a bias that training moves without a gradient, and a buffer that is none of ours."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2))
        self.frozen = torch.nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("expert_bias", torch.zeros(3))
        self.register_buffer("local_tokens_per_expert", torch.zeros(3))


def teacher(module, **config):
    return SelfTeacher(TeacherConfig(**config), module)


def test_chunks_keep_names_apart_and_bring_the_routers_bias():
    chunks = [Router(), Router()]
    shards = trainable_shards(chunks)
    assert sorted(shards) == [f"chunk{i}.{name}" for i in (0, 1) for name in ("expert_bias", "weight")]
    shards["chunk1.weight"].fill_(7)
    assert (chunks[1].weight == 7).all() and not (chunks[0].weight == 7).any(), "views of the live storage"


def test_a_swap_brings_the_bias_of_the_snapshot_back():
    module = Router()
    own = teacher([module])
    own.follow(0)
    with torch.no_grad():
        module.weight.add_(1)
        module.expert_bias.add_(1)
    own.policy_moved()
    moved = {name: t.clone() for name, t in module.state_dict().items()}
    with own.swapped_in():
        assert (module.expert_bias == 0).all()
        torch.testing.assert_close(module.weight, moved["weight"] - 1)
    assert all(torch.equal(t, moved[name]) for name, t in module.state_dict().items())


def test_an_average_in_half_precision_does_not_round_its_steps_away():
    """In bfloat16 a step of 0.5 % is below the last bit: such an average would never leave the first policy."""
    module = torch.nn.Linear(4, 4, bias=False).bfloat16()
    own = teacher(module, weights="ema", ema_decay=0.995)
    with torch.no_grad():
        module.weight.fill_(1.0)
        own.follow(0)
        module.weight.fill_(1.0078125)  # the next number of bfloat16
    own.policy_moved()
    for step in range(1, 201):
        own.follow(step)
    assert own.host_bytes == module.weight.nbytes * 3, "the copy, and the average in float32"
    with own.swapped_in():
        assert (module.weight == 1.0078125).all(), "63 % of the way, rounded to the nearest"
    average = own.state_dict()["average"]["weight"]
    torch.testing.assert_close(average, torch.full_like(average, 1 + 0.0078125 * (1 - 0.995**200)), rtol=1e-6, atol=0)


def test_the_age_and_the_refresh_phase():
    own = teacher(torch.nn.Linear(2, 2), refresh_interval=3)
    assert [step for step in range(10) if own.follow_due(step) and not own.follow(step)] == [0, 3, 6, 9]
    assert [own.age(step) for step in (9, 10, 12)] == [0, 1, 3]
    # A step that was left out (a resumed run of another interval) does not move the phase.
    late = teacher(torch.nn.Linear(2, 2), refresh_interval=3)
    late.follow(4)
    assert [late.follow_due(step) for step in (5, 6, 7)] == [False, True, True]


def test_under_lora_the_initial_policy_is_the_base_model():
    new, loaded, full = (
        SelfTeacher(TeacherConfig(weights="initial"), torch.nn.Linear(2, 2), has_adapter, adapter_is_new)
        for has_adapter, adapter_is_new in ((True, True), (True, False), (False, False))
    )
    for own in (new, loaded, full):
        assert own.follow_due(0)
        own.follow(0)
        assert not own.follow_due(1) and not own.follow_due(50)
    assert [own.without_adapter for own in (new, loaded, full)] == [True, True, False]
    assert [own.host_bytes > 0 for own in (new, loaded, full)] == [False, False, True]
    # A new adapter adds nothing; a loaded one does, and so the base model is not the policy.
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
    own = teacher(module)
    own.follow(0)
    own.policy_moved()
    module.bfloat16()
    with pytest.raises(RuntimeError, match=r"bias is \(2,\) torch.bfloat16, the teacher's copy of it .*float32"):
        with own.swapped_in():
            pass


def test_the_policy_comes_back_also_where_names_share_storage():
    module = torch.nn.Linear(2, 2, bias=False)
    module.other = torch.nn.Parameter(module.weight.detach())  # the same memory
    own = teacher(module)
    own.follow(0)
    with torch.no_grad():
        module.weight.add_(1)
    own.policy_moved()
    policy = module.weight.detach().clone()
    with own.swapped_in():
        assert not torch.equal(module.weight, policy)
    assert torch.equal(module.weight, policy)


def test_a_failing_restoration_goes_on_with_the_other_parameters(monkeypatch):
    module = torch.nn.Linear(2, 2)
    own = teacher(module)
    own.follow(0)
    with torch.no_grad():
        module.weight.add_(1)
        module.bias.add_(1)
    own.policy_moved()
    policy = module.weight.detach().clone()
    stock = SelfTeacher._exchange

    def failing_for_the_bias(live, host):
        if live.dim() == 1:
            raise MemoryError("injected")
        stock(live, host)

    with pytest.raises(MemoryError, match="injected"), own.swapped_in():
        monkeypatch.setattr(SelfTeacher, "_exchange", staticmethod(failing_for_the_bias))
    assert torch.equal(module.weight, policy), "restored, though the bias, which comes first, could not be"


def test_all_ranks_have_one_teacher():
    from verl_cast.trainer import _check_one_teacher

    rank = {"version": verl_cast.__version__, "host_bytes": 8, "taken_at": 3, "restored": True}
    _check_one_teacher([rank, rank])
    with pytest.raises(RuntimeError, match=r"ranks \[1\].*cast_self_teacher_"):
        _check_one_teacher([rank, {**rank, "restored": False}])
    with pytest.raises(RuntimeError, match="one version on every node"):
        _check_one_teacher([rank, {**rank, "version": "0.0"}])


@pytest.mark.parametrize("weights", ["snapshot", "ema", "initial"])
def test_a_copy_is_never_an_alias(weights):
    module = torch.nn.Linear(2, 2)
    own = teacher(module, weights=weights)
    own.follow(0)
    before = own.state_dict()["parameters"]["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(own.state_dict()["parameters"]["weight"], before)


def test_no_pass_before_there_are_weights():
    with pytest.raises(RuntimeError, match=r"follow\(\) comes before"), teacher(torch.nn.Linear(2, 2)).swapped_in():
        pass
