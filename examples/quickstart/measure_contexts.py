"""Is the teacher's context fit? Asked before training: how often is the untrained model right in which context?

Samples it under the student's prompt and under the teacher's contexts, on problems that are not trained on.

    python measure_contexts.py MODEL_DIR DATA_DIR [CONTEXT ...]

With both flips CAST goes where the teacher is (method sections 7 and 11): a context in which the model is worse than
with the student's prompt drags it down. Answer-free, and before anything is trained.
"""

import json
import math
import sys
from pathlib import Path

from reward import compute_score

SAMPLES = 4
SAMPLING = dict(temperature=0.7, top_k=20, max_tokens=16)


def interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a share."""
    z, p = 1.96, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return centre - half, centre + half


def main() -> None:
    model, data, contexts = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    done = data / f"contexts_{'_'.join(Path(c).stem for c in contexts)}.json"
    if not done.exists():
        done.write_text(json.dumps(measure(model, data, contexts)))
    print("  context of                        right      95 % interval   tokens")
    for name, (successes, trials, tokens) in json.loads(done.read_text()).items():
        low, high = interval(successes, trials)
        share = successes / trials
        print(f"  {name:30s} {share:8.2f}      {low:5.2f} to {high:4.2f}    {tokens:6.1f}", flush=True)


def measure(model: str, data: Path, contexts: list[str]) -> dict[str, tuple[int, int, float]]:
    import pandas as pd
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from verl_cast.context import TeacherContext, load_template

    rows = pd.read_parquet(data / "val.parquet").to_dict("records")
    tokenizer = AutoTokenizer.from_pretrained(model)
    students = [
        tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, return_dict=False)
        for row in rows
    ]
    prompts = {"student (chat)": students}
    for name in contexts:
        context = TeacherContext(name, load_template(name), tokenizer)
        prompts[f"teacher ({Path(name).name})"] = [
            context.prompt_ids(list(row["prompt"]), ids) for row, ids in zip(rows, students, strict=True)
        ]
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=64, seed=1)
    stop = [tokenizer.eos_token_id]
    results = {}
    for name, ids in prompts.items():
        outputs = llm.generate(
            [{"prompt_token_ids": list(i)} for i in ids],
            SamplingParams(n=SAMPLES, stop_token_ids=stop, **SAMPLING),
            use_tqdm=False,
        )
        answers = [(o, row) for out, row in zip(outputs, rows, strict=True) for o in out.outputs]
        right = sum(compute_score("", o.text, row["reward_model"]["ground_truth"])["score"] for o, row in answers)
        results[name] = (int(right), len(answers), sum(len(o.token_ids) for o, _ in answers) / len(answers))
    return results


if __name__ == "__main__":
    main()
