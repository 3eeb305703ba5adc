"""Very small models and a byte-level tokenizer with a chat template. They are made here, so tests need no download.

`python tests/support/tiny.py DIR [MODEL]` writes a model, its tokenizer, data and a reward function for verl's runs.
"""

import json
import sys
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(adds: str = "$A"):
    """One token per byte and four special tokens.

    Args:
        adds: what the tokenizer makes of a text $A. "<|endoftext|> $A" is a base model that begins texts with BOS;
            "$A <|im_end|>" appends EOS.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(specials + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    backend.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=[(token, i) for i, token in enumerate(specials)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>" if adds.startswith("<|endoftext|>") else None,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


# Models of the engine laws: what differs from "qwen3", and what the tokenizer makes of a text (see `tokenizer`).
MODELS = {
    "qwen3": ({}, "$A"),
    "qwen3-4-layers": ({"num_hidden_layers": 4}, "$A"),  # for two pipeline stages of two chunks each
    "tied-with-bos": ({"tie_word_embeddings": True}, "<|endoftext|> $A"),
    "moe": ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}, "$A"),
    # Linear and full attention, and positions in three dimensions, as in Qwen3.5.
    "mrope": ({}, "$A"),
}


def model(kind: str = "qwen3", seed: int = 0):
    """A hidden size of 64. vLLM's CPU attention needs a head size of at least 32."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3MoeConfig

    tok = tokenizer()
    settings = {
        "vocab_size": len(tok),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        **MODELS[kind][0],
    }
    config_class = {"moe": Qwen3MoeConfig, "mrope": Qwen3_5TextConfig}.get(kind, Qwen3Config)
    if kind == "mrope":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
        settings["rope_parameters"] = {**rope, "partial_rotary_factor": 1.0}
        settings["layer_types"] = ["full_attention", "linear_attention"]
        for heads in ("key", "value"):
            settings |= {f"linear_num_{heads}_heads": 2, f"linear_{heads}_head_dim": 32}
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_class(**settings), dtype=torch.float32)


# A random reward that depends only on the response. An untrained model gets mixed groups, the same in every run.
REWARD = """
import zlib


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"score": float(zlib.crc32(solution_str.encode()) % 3 == 0)}
"""


def write(directory: Path, kind: str = "qwen3") -> None:
    import pandas as pd

    directory.mkdir(parents=True, exist_ok=True)
    model(kind).save_pretrained(directory / "model")
    tokenizer(MODELS[kind][1]).save_pretrained(directory / "model")
    rows = [
        {
            "data_source": "tiny",
            "prompt": [{"role": "user", "content": f"What is {a} + {b}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"index": 8 * a + b},
        }
        for a in range(8)
        for b in range(8)
    ]
    pd.DataFrame(rows).to_parquet(directory / "train.parquet")
    (directory / "reward.py").write_text(REWARD)
    (directory / "done.json").write_text(json.dumps({"rows": len(rows)}))


def write_for_engine_laws(directory: Path, kind: str = "qwen3") -> None:
    """What `write` writes, and a template of a context."""
    write(directory, kind)
    (directory / "context.jinja").write_text(
        '{% set shown = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}] %}'
        "{{ apply_chat_template(shown + messages) }}"
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:])
