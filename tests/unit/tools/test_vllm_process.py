"""Laws of tools/vllm_process.py: its KV cache on a CPU, and vLLM's own message when it fails."""

import psutil
import pytest

from verl_cast.tools import vllm_process
from verl_cast.tools.cli import UserError


def test_the_kv_cache_on_a_cpu_fits_the_free_memory():
    free = psutil.virtual_memory().available
    [(name, size)] = vllm_process.kv_cache_on_a_cpu({"gpu_memory_utilization": 0.9}, {}).items()
    assert name == "kv_cache_memory_bytes" and 2**30 <= size < max(2**30 + 1, free / 2)
    assert vllm_process.kv_cache_on_a_cpu({"kv_cache_memory_bytes": 5}, {}) == {}
    assert vllm_process.kv_cache_on_a_cpu({}, {"VLLM_CPU_KVCACHE_SPACE": "1"}) == {}


def test_vllms_own_message_arrives_whole(tmp_path, tiny_directory):
    """The real process. vLLM's message says first that something is wrong, and what only in its further lines."""
    engine = {"model": str(tiny_directory / "model"), "dtype": "float32", "max_model_len": 10**6, "seed": 0}
    with pytest.raises(UserError) as refused:
        list(vllm_process.sample(engine, {"n": 1, "max_tokens": 4}, [[1]], [0], tmp_path / "vllm.log"))
    assert "max_model_len (1000000) is greater than the derived max_model_len" in str(refused.value), refused.value
    assert str(refused.value).endswith(f"(its log: {tmp_path / 'vllm.log'})") and "\n" not in str(refused.value)


def test_a_message_of_several_lines_is_relayed_whole_and_nothing_else():
    head = "(Worker pid=1) ERROR 11-23 00:53:12 [x.py:1055] "
    log = (
        "INFO 11-23 00:53:00 [core.py:1] fine\n"
        f"{head}    raise RuntimeError('Error(s) in loading')\n"
        f"{head}RuntimeError: Error(s) in loading state_dict for Net:\n"
        f"{head}\tMissing key: a.\n"
        f"{head}{'x' * 400}.\n"
        "(EngineCore pid=2) RuntimeError: Worker failed with error\n"
    )
    whole = f"RuntimeError: Error(s) in loading state_dict for Net: Missing key: a. {'x' * 400}."
    assert vllm_process.root_cause(log) == whole
    for after in ("Traceback (most recent call last):", "", "ValueError: other", "INFO 11-23 00:53:00 [core.py:1] x"):
        assert vllm_process.root_cause(f"ValueError: a\n  b\n{after}\nmore\n") == "ValueError: a b"
