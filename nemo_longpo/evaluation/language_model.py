"""A model as lm-evaluation-harness sees it, on the engines of the data tools; every answer is kept at once.

Nothing is cut: a prompt that does not fit is the caller's to refuse or to drop (see requests.py). Token ids go to the
engine, so that all engines read the same.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Literal

from lm_eval.api import instance, model

from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.data_tools.engines.engine import Engine, Sampling
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.errors import InputError

Messages = Sequence[dict[str, str]]


def key_of(question: Any) -> str:
    """Name a question by everything that decides its answer, as JSON values."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


class Answers:
    """Answers of one model by key, one JSON line each. A line that a kill has cut is as good as none.

    The directory is named by `model`, all that makes answers of two models differ (weights, dtype, engine), so that no
    model gets another one's answers.
    """

    def __init__(self, directory: Path, model: Mapping[str, Any]):
        directory.mkdir(parents=True, exist_ok=True)
        name = key_of(model)[:16]
        self._path = directory / f"{name}.jsonl"
        self._found = _read(self._path)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def put(self, key: str, value: Any) -> None:
        """Keep an answer. Raises InputError if the disk is full."""
        self._found[key] = value
        with explain_full_disk(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([key, value])}\n")  # its own line, even after one that was cut


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            key, value = json.loads(line)
        except ValueError:  # cut, or empty
            continue
        found[key] = value
    return found


class EngineLM(model.TemplateLM):
    """A tokenizer for the prompts, and an engine for the answers, which is loaded when the first answer is missing.

    `stop_ids` end an answer. `tick` is told of finished requests. A template that prints the
    date is told `day`. Text of an answer is stripped of white space around
    it: engines differ in whether they keep the blank in front.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: frozenset[int],
        answers: Answers,
        load_engine: Callable[[], Engine],
        tick: Callable[[Usage], None],
        day: date,
    ):
        super().__init__()
        self._midnight = datetime.combine(day, time())
        self.tokenizer, self._stop_ids = tokenizer, stop_ids
        self._answers, self._load_engine, self._tick = answers, load_engine, tick
        self._engine: Engine | None = None

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; a text that begins with the BOS token, as one of a chat template, gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = not (self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token))
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as text up to the answer; without `add_generation_prompt` the last message is continued.

        Raises InputError if the template leaves out the system prompt.
        """
        text = self.tokenizer.apply_chat_template(
            list(chat_history),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            strftime_now=self._midnight.strftime,  # the one clock that transformers gives to templates
        )
        for message in chat_history:
            if message["role"] == "system" and message["content"].strip() not in text:
                raise InputError(
                    f"the chat template of {self.tokenizer_name} leaves out the system prompt; give none, or a model "
                    "whose template has a place for it"
                )
        return text

    def request_tokens(self, request: instance.Instance) -> tuple[int, int]:
        """Count the tokens that the model reads for a request, and the most that it writes."""
        if request.request_type == "generate_until":
            prompt, asked = request.args
            return len(self.tok_encode(prompt)), int(asked["max_gen_toks"])
        context, continuation = self._pair(*request.args)
        return len(context) + len(continuation), 0

    def generate_until(self, requests: list[instance.Instance], disable_tqdm: bool = False) -> list[str]:
        """The model's greedy answers, in order."""
        texts: dict[int, str] = {}
        limits = [int(request.args[1]["max_gen_toks"]) for request in requests]
        for limit in sorted(set(limits)):
            chosen = [index for index, own in enumerate(limits) if own == limit]
            prompts = [self.tok_encode(requests[index].args[0]) for index in chosen]
            questions = [[prompt, limit, sorted(self._stop_ids)] for prompt in prompts]
            lengths = [len(prompt) + limit for prompt in prompts]
            for index, ids in zip(chosen, self._ask("generate", questions, lengths, self._generate), strict=True):
                texts[index] = _before_stop(self._text(ids), requests[index].args[1].get("until") or ())
        return [texts[index] for index in range(len(requests))]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """log p(continuation | context), and False: no task of ours asks whether it is the greedy one."""
        questions: list[Any] = [[context, continuation] for _, context, continuation in requests]
        sums = self._ask("score", questions, [len(c) + len(t) for c, t in questions], self._score)
        return [(float(value), False) for value in sums]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no benchmark here asks for the likelihood of whole texts")

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)

    def _ask(
        self,
        method: Literal["generate", "score"],
        questions: list[Any],
        lengths: list[int],
        work: Callable[[Engine, list[Any]], list[Any]],
    ) -> list[Any]:
        """Ask the engine what no earlier run has asked, batch by batch, and keep each batch's answers at once."""
        keys = [key_of([method, question]) for question in questions]
        missing = list({key: index for index, key in enumerate(keys) if key not in self._answers}.values())
        if missing:
            self._engine = self._engine or self._load_engine()
            for batch in self._engine.batches([lengths[index] for index in missing]):
                chosen = [missing[index] for index in batch]
                for index, answer in zip(chosen, work(self._engine, [questions[i] for i in chosen]), strict=True):
                    self._answers.put(keys[index], answer)
        return [self._answers[key] for key in keys]

    def _generate(self, engine: Engine, questions: list[Any]) -> list[list[int]]:
        greedy = Sampling(max_new_tokens=questions[0][1], stop_ids=self._stop_ids)
        prompts = [prompt for prompt, _, _ in questions]
        return [found.ids for found in engine.generate(prompts, greedy, [0] * len(prompts), self._tick)]

    def _score(self, engine: Engine, questions: list[Any]) -> list[float]:
        sequences = [[*context, *continuation] for context, continuation in questions]
        spans = [[(len(context), len(context) + len(continuation))] for context, continuation in questions]
        return [float(logps.sum(dtype="float64")) for (logps,) in engine.score(sequences, spans, self._tick)]


def _before_stop(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
