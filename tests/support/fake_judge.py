"""A judge on 127.0.0.1 that says what it is told to, with faults on demand; and small benchmarks for it to rate."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from support.fake_vllm import FakeVllm

from nemo_longpo.data_tools.engines.engine import Completion, Sampling
from nemo_longpo.data_tools.runner import Usage

CATEGORIES = {81: "writing", 82: "writing", 101: "reasoning", 111: "math", 121: "coding"}
SYSTEM = "You rate a great many answers."


class FakeJudge(FakeVllm):
    """`says` makes a reply of the last message of a request; `bodies`, `faults` and `keys` are those of FakeVllm."""

    path = "/v1/chat/completions"

    def __init__(self, says: Callable[[str], str | None] = lambda prompt: "It is good. [[7]]"):
        self.says = says
        super().__init__()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        said = self.says(body["messages"][-1]["content"])
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return {
            "model": f"{body['model']}-2026",
            "choices": [choice],
            "usage": {"prompt_tokens": 9, "total_tokens": 12},
        }

    @property
    def judged(self) -> list[str]:
        """What it was asked to rate, without the question whether it is there."""
        prompts = [body["messages"][-1]["content"] for body in self.bodies]
        return [prompt for prompt in prompts if "are you there" not in prompt]


class ScriptedEngine:
    """Answers what a function makes of the text of the prompt; `asked` are the texts, batch by batch."""

    def __init__(self, tokenizer: Any, answer: Callable[[str], str]):
        self.tokenizer, self.answer = tokenizer, answer
        self.asked: list[list[str]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        tick: Callable[[Usage], None],
        done: Callable[[int, Completion], None],
        wanted: Collection[int],
    ) -> None:
        assert sampling.temperature == 0
        self.asked.append([])
        for index in sorted(wanted):
            text = self.tokenizer.decode(prompts[index], skip_special_tokens=True)
            self.asked[-1].append(text)
            done(index, Completion(self.tokenizer(self.answer(text), add_special_tokens=False).input_ids, "stop"))


def write_mt_bench(data: Path) -> Path:
    """Five questions of two turns in FastChat's files, with prompts of our own for the judge."""
    question = [
        {"question_id": number, "category": category, "turns": [f"Tell of boat {number}.", f"And of lamp {number}?"]}
        for number, category in CATEGORIES.items()
    ]
    reference = [
        {"question_id": number, "choices": [{"index": 0, "turns": [f"north {number}", f"south {number}"]}]}
        for number in (101, 111, 121)
    ]
    templates = {
        "single-v1": "Rate: {question} / {answer}",
        "single-math-v1": "Rate by reference {ref_answer_1}: {question} / {answer}",
        "single-v1-multi-turn": "Rate the second: {question_1} / {answer_1} / {question_2} / {answer_2}",
        "single-math-v1-multi-turn": (
            "Rate the second by {ref_answer_1}, {ref_answer_2}: {question_1} / {answer_1} / {question_2} / {answer_2}"
        ),
        "pair-v2": "{question} {answer_a} {answer_b}",
    }
    prompts = [
        {
            "name": name,
            "type": "single",
            "system_prompt": SYSTEM,
            "prompt_template": text,
            "output_format": "[[rating]]",
        }
        for name, text in templates.items()
    ]
    write_lines(data / "mt_bench" / "question.jsonl", question)
    write_lines(data / "mt_bench" / "reference_answer" / "gpt-4.jsonl", reference)
    write_lines(data / "judge_prompts.jsonl", prompts)
    return data


def write_longbench_chat(data: Path) -> Path:
    """Three questions, one of them in Chinese, in LongAlign's files, with a prompt of our own for the judge."""
    directory = data / "LongBench_Chat"
    directory.mkdir(parents=True)
    queries = ("Where is the boat?", "船在哪里?", "Where is the lamp?")
    cases = [
        {"idx": number, "prompt": f"{'the river ' * 40}{query}", "query": query, "answer": f"at gate {number}"}
        for number, query in enumerate(queries, 1)
    ]
    shots = [[{"answer": f"shot {row}{shot}", "score": shot + 4} for shot in range(2)] for row in range(3)]
    (directory / "test_cases.json").write_text(json.dumps(cases))
    (directory / "few_shots.json").write_text(json.dumps(shots))
    (directory / "prompt_fs.txt").write_text("{} = {} | {} -> {} | {} -> {} | {}")
    (directory / "eval.py").write_text(f"import of_nothing\nsystem_prompt = {SYSTEM!r}\nraise SystemExit\n")
    return data


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
