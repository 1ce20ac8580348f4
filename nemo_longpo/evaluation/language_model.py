"""A model as lm-evaluation-harness sees it, on the engines of the data tools; every answer is kept at once.

Nothing is cut: a prompt that does not fit is the caller's to refuse or to drop (see prompts.py). Token ids go to the
engine, so that all engines read the same.
"""

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import jinja2
from lm_eval.api import instance, model

from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.data_tools.engines.engine import Done, ReportingEngine, Sampling
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.errors import InputError

Tokens: TypeAlias = "array[int]"
"""Token ids in four bytes each; a list takes nine times as many."""
Messages = Sequence[dict[str, str]]


def key_of(question: Any) -> str:
    """Name a question by everything that decides its answer, as JSON values."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


class Answers:
    """Answers of one model by key, one JSON line each. A line that a kill has cut is taken away.

    The directory is named by `model`, all that makes answers of two models differ (weights, dtype, engine), so that no
    model gets another one's answers.
    """

    def __init__(self, directory: Path, model: Mapping[str, Any]):
        name = key_of(model)[:16]
        self._path = directory / f"{name}.jsonl"
        self._found = _read(self._path)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def put(self, key: str, value: Any) -> None:
        """Keep an answer. Raises InputError if the disk is full."""
        if key in self._found:
            return
        self._found[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps([key, value])}\n")


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds, without a cut line at its end. Raises InputError if it is damaged."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    try:
        return dict(json.loads(line) for line in content[:whole].splitlines())
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and its questions are asked again") from error


@dataclass(frozen=True)
class Asked:
    """A request by the name of its answer: how many tokens the model reads for it, and the most that it writes.

    The first `shareable` tokens may be computed together with those of other requests; where an answer is given and
    scored, it begins behind the next one.
    """

    key: str
    prompt_tokens: int
    new_tokens: int
    shareable: int


Questions = Sequence[tuple[Asked, Tokens]]
Work = Callable[[ReportingEngine, Questions, list[int], Done[Any]], None]
"""Asks an engine those of the questions that have these indices, and reports each answer."""


class EngineLM(model.TemplateLM):
    """A tokenizer for the prompts, and an engine for the answers, which is loaded when the first answer is missing.

    `stop_ids` end an answer. `tick` is told what finished requests took, and `answered` the name of each. A template
    that prints the date is told `day`, and every template `template_kwargs`. Text of an answer is stripped of white
    space around it: engines differ in whether they keep the blank in front.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: frozenset[int],
        answers: Answers,
        load_engine: Callable[[], ReportingEngine],
        tick: Callable[[Usage], None],
        day: date,
        answered: Callable[[str], None] = lambda _: None,
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ):
        super().__init__()
        self.template_kwargs = dict(template_kwargs)
        self._midnight = datetime.combine(day, time())
        self.tokenizer, self._stop_ids = tokenizer, stop_ids
        self.answers, self._load_engine, self._tick, self._answered = answers, load_engine, tick, answered
        self._engine: ReportingEngine | None = None

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

    def count(self, text: str) -> int:
        return len(self.tok_encode(text))

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as text up to the answer; without `add_generation_prompt` the last message is continued.

        Raises InputError if the template refuses the conversation, or leaves out the system prompt, which may be the
        introduction of a task.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(chat_history),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.template_kwargs,
                strftime_now=self._midnight.strftime,  # the one clock that transformers gives to templates
            )
            problem = None
        except jinja2.TemplateError as error:
            text, problem = "", f"does not take this conversation ({error})"
        for message in chat_history:
            if message["role"] == "system" and message["content"].strip() not in text:
                problem = problem or "leaves out the system prompt"
                raise InputError(
                    f"the chat template of {self.tokenizer_name} {problem}; it should have a place for the system "
                    "prompt, or the introduction of a task: leave out --system-prompt, or the template with "
                    "--chat-template never"
                )
        if problem:
            raise InputError(f"the chat template of {self.tokenizer_name} {problem}; use --chat-template never")
        return text

    def read(self, request: instance.Instance) -> tuple[Asked, Tokens]:
        """Return what the model is asked with a request, and the tokens that it reads."""
        if request.request_type == "generate_until":
            prompt, limit, stops = self._prompt(request)
            asked = Asked(self._key("generate", [prompt, limit, stops]), len(prompt), limit, len(prompt) - 1)
            return asked, prompt
        return self._choice(*self._pair(*request.args))

    def _choice(self, context: list[int], continuation: list[int]) -> tuple[Asked, Tokens]:
        whole = array("i", [*context, *continuation])
        return Asked(self._key("score", [context, continuation]), len(whole), 0, len(context) - 1), whole

    def recall(self, request: instance.Instance, key: str) -> Any:
        """Return the kept answer to a request, in the form in which `generate_until` or `loglikelihood` returns it."""
        found = self.answers[key]
        if request.request_type == "generate_until":
            return before_stop(self._text(found), request.args[1].get("until") or ()).strip()
        return float(found), False

    def generate_until(self, requests: list[instance.Instance], disable_tqdm: bool = False) -> list[str]:
        """The model's greedy answers, in order."""
        return self.answer(requests, [self.read(request) for request in requests])

    def answer(self, requests: Sequence[instance.Instance], readings: Questions) -> list[Any]:
        """Return the answer to each request, whose reading `read` has returned, and ask for those that are missing.

        The engine is told all of one length, so that it computes the same ones together whichever are left.
        """
        groups: dict[tuple[str, int], dict[str, tuple[Asked, Tokens]]] = defaultdict(dict)
        for request, (asked, ids) in zip(requests, readings, strict=True):
            groups[request.request_type, asked.new_tokens][asked.key] = asked, ids
        for kind, limit in sorted(groups):
            self._ask(groups[kind, limit], self._generate if kind == "generate_until" else self._score)
        return [self.recall(request, asked.key) for request, (asked, _) in zip(requests, readings, strict=True)]

    def _prompt(self, request: instance.Instance) -> tuple[Tokens, int, list[int]]:
        prompt, settings = request.args
        return array("i", self.tok_encode(prompt)), int(settings["max_gen_toks"]), sorted(self._stop_ids)

    @staticmethod
    def _key(method: str, question: Sequence[Any]) -> str:
        return key_of([method, [list(part) if isinstance(part, array) else part for part in question]])

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def close(self) -> None:
        """Give back the engine's memory. It is loaded again if another answer is missing."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no benchmark here asks for the likelihood of whole texts")

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """log p(continuation | context), and False: no task of ours asks whether it is the greedy one."""
        readings = [self._choice(context, continuation) for _, context, continuation in requests]
        self._ask({asked.key: (asked, ids) for asked, ids in readings}, self._score)
        return [(float(self.answers[asked.key]), False) for asked, _ in readings]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)

    def _ask(self, questions: Mapping[str, tuple[Asked, Tokens]], work: Work) -> None:
        """Ask the engine those of the questions, by name, that no earlier run has asked; keep each answer at once."""
        names = list(questions)
        missing = [index for index, key in enumerate(names) if key not in self.answers]

        def keep(index: int, found: Any) -> None:
            self.answers.put(names[index], found)
            self._answered(names[index])

        if missing:
            self._engine = self._engine or self._load_engine()
            work(self._engine, list(questions.values()), missing, keep)

    def _generate(self, engine: ReportingEngine, questions: Questions, wanted: list[int], keep: Done[Any]) -> None:
        greedy = Sampling(max_new_tokens=questions[0][0].new_tokens, stop_ids=self._stop_ids)
        prompts = [prompt for _, prompt in questions]
        engine.generate(prompts, greedy, [0] * len(prompts), self._tick, lambda at, found: keep(at, found.ids), wanted)

    def _score(self, engine: ReportingEngine, questions: Questions, wanted: list[int], keep: Done[Any]) -> None:
        spans = [[(asked.shareable + 1, asked.prompt_tokens)] for asked, _ in questions]
        sequences = [ids.tolist() for _, ids in questions]
        engine.score(
            sequences, spans, self._tick, lambda at, found: keep(at, float(found[0].sum(dtype="float64"))), wanted
        )


def before_stop(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.split(stop)[0]
    return text
