"""The engine for models behind vLLM's OpenAI-compatible servers: completions of token ids, over HTTP."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from ..runner import Tick, Usage
from ..settings import EngineSettings, ServerSettings
from .engine import Completion, Done, Sampling, Spans, indices, no_report
from .server_http import Address, ServedModel, parse_address
from .server_pool import Pauses, ServerPool

Result = TypeVar("Result")
# Reads the result of the request with this index from its choice; the URL is for error messages.
Read = Callable[[int, dict[str, Any], str], Result]


class ServerEngine:
    """Any number of servers that were started with the model in `directory`.

    A server's own `--dtype` and `--hf-overrides` (for another RoPE base) decide how the model is loaded; `dtype` and
    `rope_theta` here only record it. Requests with the same first `prefix_tokens` tokens go to the same server, one
    after the other, so that its prefix cache is used; only servers with `--enable-prompt-tokens-details` report how
    much it saved. Every answer is checked against its request. Raises InputError if a server cannot be reached or does
    not do what is needed.
    """

    writes_json = True  # if it was started with a tokenizer, as it is by default

    def __init__(
        self, directory: str | Path, common: EngineSettings, own: ServerSettings, pauses: Pauses | None = None
    ):
        if not own.base_url:
            raise InputError("engine server needs base_url: the addresses of one or more vLLM servers")
        addresses: dict[str, Address] = {}
        for address in map(parse_address, own.base_url):
            addresses.setdefault(address.url, address)
        self._addresses = list(addresses.values())
        self._own, self._pauses = own, pauses or Pauses()
        config = ModelConfig.read(directory)
        self.vocab_size, self.context_length = config.require("vocab_size", "max_position_embeddings")
        self.dtype = config.stored_dtype if common.dtype == "auto" else common.dtype
        self._model = asyncio.run(self._connect())
        self.max_length: int | None = self._model.max_length

    async def _connect(self) -> ServedModel:
        async with ServerPool(self._addresses, self._own, self._pauses) as pool:
            return await pool.connect()

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return [list(range(len(lengths)))]

    def close(self) -> None:
        """Nothing is held between calls."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        tick: Tick,
        done: Done[Completion] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[Completion]:
        bodies = [self._body(prompt) | _sampling_fields(sampling) for prompt in prompts]
        if sampling.temperature > 0:
            bodies = [body | {"seed": seed} for body, seed in zip(bodies, seeds, strict=True)]

        def read(index: int, choice: dict[str, Any], url: str) -> Completion:
            return _read_completion(choice, url, bodies[index]["prompt"], sampling, self.vocab_size)

        try:
            return asyncio.run(self._all(bodies, read, tick, done, indices(len(bodies), wanted)))
        except InputError as error:
            if sampling.json_schema is None or "refuses the request" not in str(error):
                raise
            raise InputError(
                f"{error}; it was asked for JSON: start the server with a tokenizer, or give --no-structured-output"
            ) from error

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Spans,
        tick: Tick,
        done: Done[list[np.ndarray]] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[list[np.ndarray]]:
        fields = {"prompt_logprobs": 0, "max_tokens": 1, "temperature": 0.0}
        bodies = [self._body(sequence) | fields for sequence in sequences]

        def read(index: int, choice: dict[str, Any], url: str) -> list[np.ndarray]:
            logps = _read_prompt_logps(choice, url, bodies[index]["prompt"])
            return [logps[start:end] for start, end in spans[index]]

        return asyncio.run(self._all(bodies, read, tick, done, indices(len(bodies), wanted)))

    def _body(self, prompt: Sequence[int]) -> dict[str, Any]:
        return {"model": self._model.name, "prompt": prompt if isinstance(prompt, list) else list(prompt)}

    async def _all(
        self, bodies: list[dict[str, Any]], read: Read[Result], tick: Tick, done: Done[Result], chosen: list[int]
    ) -> list[Result]:
        """Return the result of every chosen request, in order. The first InputError ends all requests."""
        keys = [str(body["prompt"][: self._own.prefix_tokens]) for body in bodies]
        results: dict[int, Result] = {}
        async with ServerPool(self._addresses, self._own, self._pauses, self._model) as pool:
            await pool.connect()

            async def run(index: int) -> None:
                answer, url = await pool.complete(bodies[index], keys[index])
                results[index] = read(index, answer["choices"][0], url)
                tick(_usage(answer, len(bodies[index]["prompt"]), results[index]))
                done(index, results[index])

            first_with = {key: index for index, key in reversed(list(enumerate(keys)))}
            order = sorted(chosen, key=lambda index: first_with[keys[index]])
            tasks = [asyncio.create_task(run(index)) for index in order]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [results[index] for index in chosen]


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Return every field that affects an answer, so that no default of the server does."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": sampling.json_schema}}
    return {
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,  # only the stop tokens above end an answer
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_token_ids": True,
    } | ({"response_format": form} if sampling.json_schema else {})


def _read_completion(
    choice: dict[str, Any], url: str, prompt: list[int], sampling: Sampling, vocab_size: int
) -> Completion:
    ids, reason = choice.get("token_ids"), choice.get("finish_reason")
    if not isinstance(ids, list):
        raise InputError(f"{url} returns no token ids; it must be vLLM 0.10.2 or newer")
    if choice.get("prompt_token_ids") != prompt:
        raise InputError(
            f"{url} answers another prompt than it was sent; it must be vLLM and not cut or change prompts"
        )
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise InputError(f"{url} generates token ids outside the vocabulary of {vocab_size}: it serves another model")
    ended = next((index for index, token in enumerate(ids) if token in sampling.stop_ids), None)
    if reason == "stop" and ids and ended == len(ids) - 1:
        return Completion(ids[:-1], "stop")
    if reason == "length" and len(ids) == sampling.max_new_tokens and ended is None:
        return Completion(ids, "length")
    if ended is not None:
        raise InputError(
            f"{url} went on behind the end token {ids[ended]}, at which it was asked to stop; it must be vLLM and heed "
            "stop_token_ids"
        )
    raise InputError(
        f"{url} ended an answer after {len(ids)} of {sampling.max_new_tokens} tokens for reason {reason!r}, without a "
        "token that was asked for; start it with --generation-config vllm and without limits or stop strings of its own"
    )


def _read_prompt_logps(choice: dict[str, Any], url: str, sequence: list[int]) -> np.ndarray:
    """Return float32 log p(x_t | x_<t) of every token; NaN for the first, which nothing predicts."""
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list):
        raise InputError(f"{url} returns no prompt_logprobs; the server must be vLLM's")
    if len(entries) != len(sequence):
        raise InputError(
            f"{url} returns {len(entries)} log-probs for {len(sequence)} tokens; do not let it cut prompts"
        )
    logps = np.full(len(sequence), np.nan, dtype=np.float32)
    for position, (entry, token) in enumerate(zip(entries[1:], sequence[1:], strict=True), start=1):
        if not isinstance(entry, dict) or str(token) not in entry:
            raise InputError(f"{url} returns log-probs of other tokens than were sent, from position {position} on")
        logp = entry[str(token)].get("logprob") if isinstance(entry[str(token)], dict) else None
        if not isinstance(logp, float | int):
            raise InputError(f"{url} returns no number as log-prob of position {position}; the server must be vLLM's")
        logps[position] = logp
    return logps


def _usage(answer: dict[str, Any], prompt_tokens: int, result: Any) -> Usage:
    generated = len(result.ids) if isinstance(result, Completion) else 0
    return Usage(1, prompt_tokens, _cached_tokens(answer), generated)


def _cached_tokens(answer: dict[str, Any]) -> int:
    """Return the number of cached prompt tokens; 0 if the server does not report it."""
    for name in ("usage", "prompt_tokens_details"):
        answer = answer.get(name) or {}
        if not isinstance(answer, dict):
            return 0
    cached = answer.get("cached_tokens")
    return cached if type(cached) is int else 0
