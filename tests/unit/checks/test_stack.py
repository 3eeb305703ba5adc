"""Laws of the checks of installed packages: what would fail later, or be silently wrong, is refused by name."""

import pytest
from transformers import Qwen3Config

from verl_cast.checks import stack
from verl_cast.checks.run import check_run
from verl_cast.config.cast import CastConfigError

CAST = ("algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.n=8")
LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.strategy=fsdp")
ROLLOUT, CORRECTION = "actor_rollout_ref.rollout", "algorithm.rollout_correction"


@pytest.fixture
def versions(monkeypatch):
    """Versions that are installed: {distribution: version}; the others are not."""
    found = {"verl": "0.9.1"}
    monkeypatch.setattr(stack, "installed", lambda *names: next((found[name] for name in names if name in found), None))
    return found


@pytest.mark.parametrize("version, is_refused", [("1.12.2", False), ("1.13.0", True), ("1.14.0rc1", True)])
def test_trl_that_lacks_the_class_that_verl_imports(compose, versions, version, is_refused):
    versions["trl"] = version
    config = compose(*CAST)
    if not is_refused:
        return check_run(config)
    with pytest.raises(CastConfigError, match=r"trl='1\.1.*verl#8023.*pip install 'trl<1.13'"):
        check_run(config)
    versions["verl"] = "0.10.0"  # it may have mended it
    check_run(config)


@pytest.mark.parametrize("version, is_refused", [("0.20.1", False), ("0.21.0", True)])
def test_fsdp1_cannot_sync_the_adapter_of_this_peft(compose, versions, version, is_refused):
    versions["peft"] = version
    if is_refused:
        with pytest.raises(CastConfigError, match=r"lora_rank=8: FSDP1 with peft 0.21.0 syncs no adapter.*verl#8184"):
            check_run(compose(*CAST, *LORA))
    else:
        check_run(compose(*CAST, *LORA))
    check_run(compose(*CAST, *LORA, "actor_rollout_ref.actor.strategy=fsdp2"))
    check_run(compose(*CAST, *LORA, "actor_rollout_ref.model.lora.merge=True"))


@pytest.mark.parametrize("sampling", [f"{ROLLOUT}.top_p=0.95", f"{ROLLOUT}.top_k=20"])
def test_truncated_sampling_with_rollout_correction(compose, versions, sampling):
    """A bound on a sequence is never met; a bound on a token, or a weight, is off by the truncated mass."""
    sequence = (f"{CORRECTION}.rollout_rs=seq_mean_k3", f"{CORRECTION}.rollout_rs_threshold=0.01")
    token = (f"{CORRECTION}.rollout_rs=token_k1", f"{CORRECTION}.rollout_rs_threshold=0.5_2")
    with pytest.raises(CastConfigError, match=r"rollout_rs='seq_mean_k3': with .*top_.*rejects every sequence"):
        check_run(compose(*CAST, sampling, *sequence))
    for correction in (token, (f"{CORRECTION}.rollout_is=token",)):
        config = compose(*CAST, sampling, *correction)
        check_run(config)
        [text] = stack.stack_warnings(config)
        assert sampling in text and "verl#8020" in text
    for whole in ((), (f"{ROLLOUT}.logprobs_mode=raw_logprobs", sampling)):
        config = compose(*CAST, *whole, *sequence)
        check_run(config)
        assert stack.stack_warnings(config) == []
    assert stack.stack_warnings(compose(*CAST, sampling)) == []


def test_a_model_with_tied_embeddings_beside_a_newer_vllm_on_an_accelerator(compose, versions, monkeypatch):
    versions["vllm"], config = "0.30.0", compose(*CAST, f"{ROLLOUT}.name=vllm")
    tied, untied = Qwen3Config(tie_word_embeddings=True), Qwen3Config(tie_word_embeddings=False)
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    [text] = stack.stack_warnings(config, tied)
    assert "ties its embeddings" in text and "verl#8014" in text and "pip install 'vllm<0.30'" in text
    assert stack.stack_warnings(config, untied) == []
    versions["vllm"] = "0.29.1"
    assert stack.stack_warnings(config, tied) == []
    versions["vllm"] = "0.30.0"
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert stack.stack_warnings(config, tied) == []
