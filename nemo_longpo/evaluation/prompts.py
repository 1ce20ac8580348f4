"""The prompts of a task as a model will read them, their lengths, and what does not fit."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance

from nemo_longpo.data_tools.engines import prefixes
from nemo_longpo.errors import InputError

from .benchmarks import EvalTask, Sample
from .eval_settings import TooLong
from .language_model import Asked, EngineLM, Tokens, key_of

Requests = dict[int, list[Instance]]
"""Per document, by its number, the requests that make its score."""


@dataclass(frozen=True, kw_only=True)
class TaskPrompts:
    """What a task asks a model: per document the requests that make its score, as names and lengths in tokens.

    `dropped` documents did not fit. `longest_prompt` and the sums are of the requests that are left. `make` returns the
    task and its texts, which are made again where they are too long to be held; `task` is then without its documents.
    `computed` are the ranges [from, to) of positions to compute for what is not answered yet, if they were counted:
    what several requests begin with is in it once. `ids` are the tokens of requests by name, where texts are held.
    """

    task: EvalTask
    name: str
    asked: dict[int, list[Asked]]
    dropped: int
    computed: list[tuple[int, int]]
    make: Callable[[], tuple[EvalTask, Requests]]
    ids: Mapping[str, Tokens]

    @property
    def requests(self) -> Requests:
        return self.make()[1]

    @property
    def questions(self) -> int:
        return len(self.asked)

    @property
    def _all(self) -> list[Asked]:
        return [one for own in self.asked.values() for one in own]

    @property
    def longest_prompt(self) -> int:
        return max(one.prompt_tokens for one in self._all)

    @property
    def prompt_tokens(self) -> int:
        return sum(one.prompt_tokens for one in self._all)

    @property
    def most_new_tokens(self) -> int:
        return sum(one.new_tokens for one in self._all)

    @property
    def distinct(self) -> dict[str, Asked]:
        """The requests by name: of two that are the same, one is asked."""
        return {one.key: one for one in self._all}


@dataclass
class HeldTexts:
    """How many bytes of prompts and their tokens a model's tasks may hold until they are asked."""

    room: int = 128 << 20

    def take(self, size: int) -> bool:
        """Return whether so much still fits; if not, it takes no room."""
        fits = size <= self.room
        self.room -= size if fits else 0
        return fits


class _Texts:
    """Texts and tokens of one task, as long as `held` has room for all of them; `kept` is None once it has not."""

    def __init__(self, held: HeldTexts | None):
        self._held, self._size = held, 0
        self.kept: Requests | None = {}
        self.ids: dict[str, Tokens] = {}

    def keep(self, number: int, requests: list[Instance], ids: Mapping[str, Tokens]) -> None:
        if self.kept is None:
            return
        size = size_of(requests, ids)
        if self._held is None or self._held.take(size):
            self._size += size
            self.kept[number] = requests
            self.ids |= ids
        else:  # what was held is made again after all; others may hold theirs
            self._held.room += self._size
            self.kept, self.ids = None, {}


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How the documents of a task become prompts."""

    model: EngineLM
    chat_template: bool
    system_prompt: str | None
    samples: int | None
    seed: int

    def requests(self, task: EvalTask) -> Iterator[tuple[int, list[Instance]]]:
        """Yield the requests of each document."""
        harness = task.task
        harness.set_fewshot_seed(self.seed)
        template = self.model.apply_chat_template if self.chat_template else None
        for number, document in harness.doc_iterator(limit=self.samples):
            context = harness.fewshot_context(
                document,
                num_fewshot=harness.config.num_fewshot or 0,
                system_instruction=self.system_prompt,
                apply_chat_template=self.chat_template,
                fewshot_as_multiturn=self.chat_template,
                chat_template=template,
                gen_prefix=harness.doc_to_prefix(document),
            )
            made = harness.construct_requests(
                doc=document,
                ctx=context,
                metadata=(harness.config.task, number, 1),
                apply_chat_template=self.chat_template,
                chat_template=template,
            )
            yield number, made if isinstance(made, list) else [made]


def prompts_of(
    task: EvalTask,
    model: EngineLM,
    max_length: int,
    *,
    chat_template: bool,
    system_prompt: str | None,
    samples: int | None,
    seed: int,
    too_long: TooLong,
    again: Callable[[], EvalTask] | None = None,
    held: HeldTexts | None = None,
    count_computed: bool = False,
) -> TaskPrompts:
    """Make the prompts of the first `samples` documents of a task, and keep their names and lengths.

    The texts are kept too, unless `held` has no room for them and `again` can make the task once more.

    Raises InputError if one does not fit `max_length` tokens with its answer and `too_long` is not "drop", or if all
    are dropped.
    """
    form = _Form(model=model, chat_template=chat_template, system_prompt=system_prompt, samples=samples, seed=seed)
    name = str(task.task.config.task)
    asked: dict[int, list[Asked]] = {}
    texts = _Texts(held if again else None)
    missing: dict[str, tuple[Tokens, int]] = {}
    dropped = 0
    for number, own in form.requests(task):
        read = [model.read(request) for request in own]
        if not _fits([one for one, _ in read], max_length, f"{name}: question {number}", too_long):
            dropped += 1
            continue
        asked[number] = [one for one, _ in read]
        texts.keep(number, own, {one.key: ids for one, ids in read})
        if count_computed:
            missing |= {one.key: (ids, one.shareable) for one, ids in read if one.key not in model.answers}
    if not asked:
        raise InputError(
            f"{name}: none of {dropped:,} questions fits the {max_length:,} tokens that the model reads; leave this "
            "benchmark out"
        )
    kept = texts.kept
    return TaskPrompts(
        task=replace(task, task=None) if kept is None else task,
        name=name,
        asked=asked,
        dropped=dropped,
        computed=prefixes.segments(*zip(*missing.values(), strict=True)) if missing else [],
        make=partial(_made_again, again, form, asked) if again and kept is None else lambda: (task, kept or {}),
        ids=texts.ids,
    )


def _made_again(again: Callable[[], EvalTask], form: _Form, numbers: Container[int]) -> tuple[EvalTask, Requests]:
    task = again()
    return task, {number: own for number, own in form.requests(task) if number in numbers}


def _fits(asked: list[Asked], max_length: int, question: str, too_long: TooLong) -> bool:
    """Whether the requests of a question fit. Raises InputError if they do not, and are not to be dropped."""
    longest = max(one.prompt_tokens + one.new_tokens for one in asked)
    if longest > max_length and too_long != "drop":
        raise InputError(
            f"{question} takes {longest:,} tokens with its answer, and the model reads {max_length:,}; leave that "
            "length out, or drop and count what does not fit with --too-long drop"
        )
    return longest <= max_length


def answer(prompts: TaskPrompts, model: EngineLM) -> list[Sample]:
    """Ask the model, and score what it answers by the harness's own metric."""
    task, texts = prompts.make()
    by_kind: dict[str, list[tuple[Instance, Asked]]] = defaultdict(list)
    for number, own in texts.items():
        for request, one in zip(own, prompts.asked[number], strict=True):
            by_kind[request.request_type].append((request, one))
    for chosen in by_kind.values():
        if any(one.key not in model.answers for _, one in chosen):
            known = [(one, prompts.ids[one.key]) if one.key in prompts.ids else model.read(own) for own, one in chosen]
            model.answer([request for request, _ in chosen], known)
        for request, one in chosen:
            request.resps = [model.recall(request, one.key)]
    return [_score(prompts, task.task, number, own) for number, own in texts.items()]


def _texts(request: Instance) -> list[str]:
    return [part for part in request.args if isinstance(part, str)]


def size_of(requests: list[Instance], ids: Mapping[str, Tokens]) -> int:
    """Bytes of all texts of a question in memory, of which its choices share one context, and of its tokens."""
    texts = {id(text): len(text) for request in requests for text in _texts(request)}
    return sum(texts.values()) + sum(len(own) * own.itemsize for own in ids.values())


def _score(prompts: TaskPrompts, harness: Any, number: int, requests: list[Instance]) -> Sample:
    document = requests[0].doc
    found = [request.resps[0] for request in requests]
    metrics = harness.process_results(document, found)
    name = str(document.get("id", f"{prompts.name}:{number}"))
    text = "\0".join(part for request in requests for part in _texts(request))
    return Sample(
        id=name,
        score=float(metrics[prompts.task.benchmark.metric]),
        prompt_hash=key_of(text),
        answer=found[0] if isinstance(found[0], str) else [value for value, _ in found],
        # Where the choices are in the prompt, the harness calls the right one the text.
        expected=harness.doc_to_text(document) if harness.multiple_input else harness.doc_to_target(document),
        category=prompts.task.categories.get(name, ""),
        document=str(document.get("document", "")),
    )
