"""Readers of what judges send and of the benchmarks for them, which use it as `longpo eval` does: for fuzz tests."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
from support.fake_judge import write_longbench_chat, write_mt_bench
from support.fuzz_readers import ADDRESS, Prepared, Reader, Workshop, server
from support.mutations import mutated_bytes, mutated_json, mutated_lines
from support.tiny_models import tiny_tokenizer

from nemo_longpo.data_tools.engines.server_http import ask_chat
from nemo_longpo.evaluation.benchmarks import Benchmark, Preparation
from nemo_longpo.evaluation.judge import client, dialogues, longbench_chat, mt_bench
from nemo_longpo.evaluation.suites import BENCHMARKS

REPLY = {
    "model": "strict-2026",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Good. [[7]]"}}],
    "usage": {"prompt_tokens": 9},
}


async def hear(http: httpx.AsyncClient) -> None:
    reply = client._read(await ask_chat(http, ADDRESS, {"model": "strict"}, 9.0, "correct the key"))
    for rating in (mt_bench.rating(reply.text), longbench_chat.rating(reply.text)):
        assert rating is None or 1 <= rating <= 10
    json.dumps(vars(reply)).encode()


def benchmark_file(
    name: str, build: Callable[[Benchmark, Preparation], list[dialogues.JudgedTask]], file: str
) -> Callable[[Workshop], Prepared]:
    """Build the benchmark from its files, one of which has changed, and ask the judge of answers to every turn."""

    def prepare(shop: Workshop) -> Prepared:
        data = shop.folder(f"judged {file}") / "data"
        write_longbench_chat(write_mt_bench(data))
        path = data / file
        good = path.read_bytes()
        preparation = Preparation(
            data=data,
            tokenizer=tiny_tokenizer("qwen2.5"),
            count_tokens=lambda prompt, prefix: len(prompt),
            max_length=1 << 30,
            seed=0,
            questions=Path("unused"),
        )

        def read(content: bytes) -> None:
            path.write_bytes(content)
            for task in build(BENCHMARKS[name], preparation):
                for dialogue in task.dialogues:
                    for turn in range(len(dialogue.turns)):
                        messages = task.judge_messages(dialogue, ["fine"] * (turn + 1))
                        json.dumps(messages, ensure_ascii=False).encode()

        if file.endswith(".jsonl"):
            return mutated_lines([json.loads(line) for line in good.splitlines()]), read
        return mutated_json(json.loads(good)) if file.endswith(".json") else mutated_bytes(good), read

    return prepare


JUDGE_READERS = [
    Reader("replies of a judge", server(REPLY, hear), 9),
    *(
        Reader(file, benchmark_file(name, build, file), 20)
        for name, build, files in (
            (
                "mt_bench",
                mt_bench.build,
                ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"),
            ),
            ("longbench_chat", longbench_chat.build, BENCHMARKS["longbench_chat"].files),
        )
        for file in files
    ),
]
