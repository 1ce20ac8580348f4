"""The prompts of a task as a model will read them, their lengths, and what does not fit."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.instance import Instance

from nemo_longpo.errors import InputError

from .benchmarks import EvalTask, Sample
from .language_model import EngineLM, key_of

TooLong = Literal["official", "refuse", "drop"]
"""What becomes of a prompt that does not fit: cut by the rules of its benchmark, where it has such rules, and refused
elsewhere; always refused; or left out, and counted."""


@dataclass(frozen=True, kw_only=True)
class TaskPrompts:
    """What a task asks a model: per document the requests that make its score, with their lengths in tokens.

    `dropped` documents did not fit. `longest_prompt` and the sums are of the requests that are left.
    """

    task: EvalTask
    requests: dict[int, list[Instance]]
    dropped: int
    longest_prompt: int
    prompt_tokens: int
    most_new_tokens: int

    @property
    def name(self) -> str:
        return str(self.task.task.config.task)


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
) -> TaskPrompts:
    """Make the prompts of the first `samples` documents of a task.

    Raises InputError if one does not fit `max_length` tokens with its answer and `too_long` is not "drop", or if all
    are dropped.
    """
    harness = task.task
    harness.set_fewshot_seed(seed)
    template = model.apply_chat_template if chat_template else None
    requests: dict[int, list[Instance]] = {}
    lengths: list[tuple[int, int]] = []
    dropped = 0
    for number, document in harness.doc_iterator(limit=samples):
        context = harness.fewshot_context(
            document,
            num_fewshot=harness.config.num_fewshot or 0,
            system_instruction=system_prompt,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            chat_template=template,
            gen_prefix=harness.doc_to_prefix(document),
        )
        made = harness.construct_requests(
            doc=document,
            ctx=context,
            metadata=(harness.config.task, number, 1),
            apply_chat_template=chat_template,
            chat_template=template,
        )
        own = made if isinstance(made, list) else [made]
        sizes = [model.request_tokens(request) for request in own]
        longest = max(read + written for read, written in sizes)
        if longest <= max_length:
            requests[number] = own
            lengths += sizes
        elif too_long == "drop":
            dropped += 1
        else:
            raise InputError(
                f"{harness.config.task}: question {number} takes {longest:,} tokens with its answer, and the model "
                f"reads {max_length:,}; leave that length out, or drop and count what does not fit with --too-long drop"
            )
    if not requests:
        raise InputError(
            f"{harness.config.task}: none of {dropped:,} questions fits the {max_length:,} tokens that the model reads;"
            " leave this benchmark out"
        )
    return TaskPrompts(
        task=task,
        requests=requests,
        dropped=dropped,
        longest_prompt=max(read for read, _ in lengths),
        prompt_tokens=sum(read for read, _ in lengths),
        most_new_tokens=sum(written for _, written in lengths),
    )


def answer(prompts: TaskPrompts, model: EngineLM) -> list[Sample]:
    """Ask the model, and score what it answers by the harness's own metric."""
    requests = [request for own in prompts.requests.values() for request in own]
    by_kind: dict[str, list[Instance]] = defaultdict(list)
    for request in requests:
        by_kind[request.request_type].append(request)
    for kind, chosen in by_kind.items():
        ask: Any = {"generate_until": model.generate_until, "loglikelihood": model.loglikelihood}[kind]
        for request, found in zip(chosen, ask(chosen, disable_tqdm=True), strict=True):
            request.resps = [found]
    return [_score(prompts, number, own) for number, own in prompts.requests.items()]


def _score(prompts: TaskPrompts, number: int, requests: list[Instance]) -> Sample:
    harness, document = prompts.task.task, requests[0].doc
    found = [request.resps[0] for request in requests]
    metrics = harness.process_results(document, found)
    name = str(document.get("id", f"{prompts.name}:{number}"))
    text = "\0".join(part for request in requests for part in request.args if isinstance(part, str))
    return Sample(
        id=name,
        score=float(metrics[prompts.task.benchmark.metric]),
        prompt_hash=key_of(text),
        answer=found[0] if isinstance(found[0], str) else [value for value, _ in found],
        # Where the choices are in the prompt, the harness calls the right one the text.
        expected=harness.doc_to_text(document) if harness.multiple_input else harness.doc_to_target(document),
        category=prompts.task.categories.get(name, ""),
    )
