"""The engine for real models: vLLM in this process, token ids in, token ids or log-probs out."""

import gc
import os
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from ..runner import Tick, Usage
from ..settings import EngineSettings, VllmSettings
from .engine import Completion, Done, Sampling, Spans, indices, no_report
from .hf_model import DTYPES, set_rope_theta

# vLLM's environment variables; those that the user has set are kept. Standard output is for our own report.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process gains nothing without a GPU
    "TORCH_COMPILE_DISABLE": "1",  # needs a C++ compiler
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several of our processes would be bound to the same cores
}
_CPU_KV_CACHE_BYTES = 4 << 30

# RoPE types whose base may change; in other types (longrope) other numbers were fitted to one base.
_CHANGEABLE_BASE = {"default", "linear", "dynamic", "yarn", "llama3"}
# RoPE types whose angles do not depend on max_position_embeddings.
_CHANGEABLE_LENGTH = {"default", "linear", "yarn", "llama3"}


class VllmEngine:
    """vLLM in this process. Requests are sorted, so that prompts with the same beginning share it in the cache.

    Only the model's weights and config.json are used; its tokenizer only for `writes_json`, its generation_config
    never. A draw depends on prompt and seed, except that a logit may round differently beside other requests. Raises
    InputError if vLLM is not installed, the model cannot be loaded, or it does not run with the requested lengths and
    RoPE base.
    """

    def __init__(self, directory: str | Path, common: EngineSettings, own: VllmSettings, *, writes_json: bool = False):
        config = ModelConfig.read(directory)
        on_cpu = not torch.accelerator.is_available()
        arguments = engine_arguments(Path(directory), config, common, own, on_cpu=on_cpu)
        self.writes_json = writes_json
        if writes_json:
            arguments |= _writes_json()
        self._engine = _start(arguments, on_cpu=on_cpu)
        self.context_length, self.vocab_size = config.require("max_position_embeddings", "vocab_size")
        self.max_length: int = arguments["max_model_len"]
        self.dtype: str = arguments["dtype"]
        # On CPU vLLM cannot reset a request's random numbers, which is needed after the first part of a prompt.
        self._can_sample = not on_cpu or not arguments["enable_chunked_prefill"]
        check_loaded(self._engine.model_config, self.max_length, expected_rope_theta(config, common))

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return [list(range(len(lengths)))]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        tick: Tick,
        done: Done[Completion] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[Completion]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        self._check_lengths([len(prompt) + sampling.max_new_tokens for prompt in prompts])
        if sampling.temperature > 0 and not self._can_sample:
            raise InputError(
                f"max_num_batched_tokens is below max_model_len {self.max_length}, so prompts are read in pieces; on "
                "CPU vLLM can then only answer greedily: leave max_num_batched_tokens out, or set temperature 0"
            )
        parameters = [
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed if sampling.temperature > 0 else None,
                stop_token_ids=sorted(sampling.stop_ids),
                ignore_eos=True,  # only `stop_token_ids` end an answer
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                structured_outputs=(
                    None if sampling.json_schema is None else StructuredOutputsParams(json=sampling.json_schema)
                ),
            )
            for seed in seeds
        ]
        found: dict[int, Completion] = {}
        for index, output in self._run(prompts, parameters, tick, indices(len(prompts), wanted)):
            found[index] = _completion(output.outputs[0])
            done(index, found[index])
        return [found[index] for index in sorted(found)]

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Spans,
        tick: Tick,
        done: Done[list[np.ndarray]] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[list[np.ndarray]]:
        """Score sequences. vLLM generates one token after each, so `max_length` must leave room for it."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._check_lengths([len(sequence) + 1 for sequence in sequences])
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,  # those of the prompt's own tokens, and no others
            flat_logprobs=True,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found: dict[int, list[np.ndarray]] = {}
        chosen = indices(len(sequences), wanted)
        for index, output in self._run(sequences, [parameters] * len(sequences), tick, chosen):
            found[index] = [_span_logps(output.prompt_logprobs, span) for span in spans[index]]
            done(index, found[index])
        return [found[index] for index in sorted(found)]

    def close(self) -> None:
        """End vLLM's own process where it has one, as on GPUs; only then is the memory free at once."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()

    def _run(
        self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any], tick: Tick, chosen: list[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, vLLM's output) of every chosen prompt as soon as it is finished."""
        from vllm.inputs import tokens_input

        # As lists of numbers sort; their bytes are much smaller.
        for index in sorted(chosen, key=lambda index: np.asarray(prompts[index], dtype=">u4").tobytes()):
            self._engine.add_request(str(index), tokens_input(list(prompts[index])), parameters[index])
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                generated = len(output.outputs[0].token_ids)
                tick(Usage(1, len(output.prompt_token_ids), output.num_cached_tokens or 0, generated))
                yield int(output.request_id), output

    def _check_lengths(self, lengths: list[int]) -> None:
        longest = max(lengths, default=0)
        if longest > self.max_length:
            raise InputError(
                f"a request of {longest} tokens, with what is generated behind it, exceeds the engine's max_model_len "
                f"of {self.max_length}; set max_model_len to {longest} or more, or make the request shorter"
            )


def _start(arguments: dict[str, Any], *, on_cpu: bool) -> Any:
    for name, value in (_ENVIRONMENT | (_CPU_ENVIRONMENT if on_cpu else {})).items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise InputError(
            "engine vllm needs vLLM, which is not installed here and cannot be installed beside NeMo: run `make "
            "vllm-env` and call .venv-vllm/bin/longpo, or install requirements/vllm.txt into an environment of its own"
        ) from error
    try:
        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"vLLM cannot run {arguments['model']}: {reason}") from error


def _writes_json() -> dict[str, Any]:
    """Return the arguments that let the engine enforce a JSON schema: the tokenizer decides which tokens may come next.

    Free white space is forbidden: a model may write it until the limit.
    """
    from vllm.config import StructuredOutputsConfig

    chosen = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
    return {"skip_tokenizer_init": False, "structured_outputs_config": chosen}


def _completion(output: Any) -> Completion:
    ids = list(output.token_ids)
    return Completion(ids[:-1], "stop") if output.finish_reason == "stop" else Completion(ids, "length")


def _span_logps(prompt_logprobs: Any, span: tuple[int, int]) -> np.ndarray:
    """Return a span of vLLM's flat log-probs: entries start_indices[t] to end_indices[t] - 1 (one) are token t's."""
    start, end = span
    first, last = prompt_logprobs.start_indices[start], prompt_logprobs.end_indices[end - 1]
    assert last - first == end - start
    return np.array(prompt_logprobs.logprobs[first:last], dtype=np.float32)


def engine_arguments(
    directory: Path, config: ModelConfig, common: EngineSettings, own: VllmSettings, *, on_cpu: bool
) -> dict[str, Any]:
    """Return vLLM's arguments: nothing that matters is left to its defaults.

    Raises InputError if config.json lacks what is needed, or its RoPE settings do not allow the requested change.
    """
    positions, _ = config.require("max_position_embeddings", "vocab_size")
    length = own.max_model_len or positions
    _check_rope_changes(directory, config, common.rope_theta, length, positions)
    dtype = config.stored_dtype if common.dtype == "auto" else common.dtype  # vLLM's "auto" runs float32 in bfloat16
    if dtype not in DTYPES:
        raise InputError(f"{directory} is stored as {dtype}; choose one of {', '.join(DTYPES)} with dtype")
    arguments = {
        "model": str(directory),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # vLLM's own defaults instead of the model's file
        "dtype": dtype,
        "max_model_len": length,
        "max_num_seqs": own.max_num_seqs,
        "max_num_batched_tokens": own.max_num_batched_tokens,
        "enable_prefix_caching": True,
        "tensor_parallel_size": own.tensor_parallel_size,
        "hf_overrides": partial(_override, rope_theta=common.rope_theta, length=length),
    }
    if not on_cpu:
        return arguments | {
            "gpu_memory_utilization": own.gpu_memory_utilization,
            "kv_cache_memory_bytes": own.kv_cache_memory_bytes,
        }
    batched = own.max_num_batched_tokens or max(length, own.max_num_seqs)
    return arguments | {
        "max_num_batched_tokens": batched,
        "enable_chunked_prefill": batched < length,
        "enforce_eager": True,
        "kv_cache_memory_bytes": own.kv_cache_memory_bytes or _CPU_KV_CACHE_BYTES,
    }


def check_loaded(loaded: Any, max_model_len: int, rope_theta: float | None) -> None:
    """Compare what vLLM runs with the request, because it ignores some overrides silently. Raises InputError if they
    differ."""
    text = loaded.hf_text_config
    base = (text.rope_parameters or {}).get("rope_theta")
    if loaded.max_model_len != max_model_len or text.max_position_embeddings < max_model_len:
        raise InputError(
            f"vLLM runs the model with max_model_len {loaded.max_model_len} and max_position_embeddings "
            f"{text.max_position_embeddings} instead of {max_model_len}; use the vLLM version of requirements/"
        )
    if rope_theta is not None and base != rope_theta:
        raise InputError(
            f"vLLM runs the model with rope_theta {base} instead of {rope_theta}; use the vLLM version of requirements/"
        )


def _override(config: Any, *, rope_theta: float | None, length: int) -> Any:
    """Change the model's configuration; vLLM also calls this once with an empty one."""
    if rope_theta is not None:
        set_rope_theta(config, rope_theta)
    if length > getattr(config, "max_position_embeddings", length):
        config.max_position_embeddings = length
    return config


def expected_rope_theta(config: ModelConfig, common: EngineSettings) -> float | None:
    """Return the RoPE base that the model must use; None if neither the settings nor config.json name one."""
    return config.rope_fields.get("rope_theta", config.rope_theta) if common.rope_theta is None else common.rope_theta


def _check_rope_changes(directory: Path, config: ModelConfig, rope_theta: float | None, length: int, own: int) -> None:
    """Raises InputError if the RoPE type does not allow the change; `own` is the model's own number of positions."""
    several = any(isinstance(value, dict) for value in config.rope_fields.values())
    kind = "several" if several else config.rope_type
    if rope_theta is not None and kind not in _CHANGEABLE_BASE:
        raise InputError(
            f"{directory} has RoPE settings of type {kind!r}, whose base cannot change; leave out rope_theta"
        )
    if length > own and kind not in _CHANGEABLE_LENGTH:
        raise InputError(
            f"{directory} has RoPE settings of type {kind!r}, which depend on the model's own length; set "
            f"max_model_len to at most {own}"
        )
