"""Whether rounds can reach their lengths: positions, RoPE settings, and what has to be read as a whole."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_longpo.data_tools.settings import ChunkSettings
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.model_directory.rope_settings import RopeScaling, RopeSettings, parse_scaling

from . import evolution_settings as told


def check_lengths(rounds: Sequence[told.RoundFields], file: told.FileFields, base: ModelConfig, path: str) -> None:
    """Raises InputError if a length does not rise, or the RoPE settings of its round cannot reach it.

    What counts is `length` and `branch_tokens` together. With the settings of the base model these are its positions;
    with others, what its heads can tell apart.
    """
    (positions,) = base.require("max_position_embeddings")
    if base.active_window and not file.full_attention:
        raise InputError(
            f"{path}: {base.file} limits attention to a window of {base.active_window:,} tokens, and no length beyond "
            "it can be learned; set full_attention: true to drop the window"
        )
    rope, before = base.rope, 0
    for number, own in enumerate(rounds, 1):
        where = f"{path}: round {number}"
        if own.length <= before:
            raise InputError(
                f"{where}: its length of {own.length:,} tokens is not above {before:,}, that of the round "
                "before; give rounds of rising lengths"
            )
        if own.rope_theta is not None and own.rope_theta < rope.theta:
            raise InputError(
                f"{where}: rope_theta {own.rope_theta:g} is below {rope.theta:g}, that of the model it starts "
                "from; raise it, or leave it out to keep that one"
            )
        rope, before = _next(rope, own, positions, where), own.length
        if rope != base.rope:
            rope.require_reach(
                own.length + file.branch_tokens,
                base.require_head_size(),
                where,
                length="a length",
                base="a rope_theta",
                spare=file.branch_tokens,
            )
        elif own.length + file.branch_tokens > positions:
            raise InputError(
                f"{where}: the base model reaches {positions:,} positions with its RoPE base {rope.theta:g}, and the "
                f"round needs {own.length:,} with {file.branch_tokens:,} for answers; give a higher rope_theta, a "
                "rope_scaling, or a shorter length"
            )


def _next(rope: RopeSettings, own: told.RoundFields, positions: int, where: str) -> RopeSettings:
    """Return the settings of a round as `longpo convert import` makes them of those of the model it starts from."""
    theta = rope.theta if own.rope_theta is None else own.rope_theta
    if own.rope_scaling is None and theta != rope.theta and rope.scaling is not None:
        raise InputError(
            f"{where}: the scaling of the model it starts from was made for RoPE base {rope.theta:g}, not "
            f"{theta:g}; give rope_scaling: none to drop it, or keep to apply it to the new base"
        )
    if own.rope_scaling in (None, "keep"):
        return RopeSettings(theta, rope.scaling)
    return RopeSettings(theta, None if own.rope_scaling == "none" else _scaling(own.rope_scaling, positions, where))


def _scaling(text: str | None, positions: int, where: str) -> RopeScaling | None:
    try:
        described: Any = json.loads(text or "")
    except ValueError:
        described = None
    if not isinstance(described, dict) or "rope_theta" in described:
        raise InputError(
            f"{where}: rope_scaling is {text!r:.60}; give keep, none, or a scaling without rope_theta as JSON, such "
            'as \'{"rope_type": "linear", "factor": 4.0}\''
        )
    return parse_scaling(described, f"{where}: rope_scaling", positions)


def check_sizes(
    own: told.Round, evaluate: Mapping[str, Any], base: ModelConfig, before: told.Round | None, where: str
) -> None:
    """Raises InputError if chunks, documents or questions of a round are longer than what has to read them.

    `evaluate` are the options of `longpo eval`, `before` the round before.
    """
    (of_base,) = base.require("max_position_embeddings")
    chunk, respond = (own.data["stages"][name] for name in ("chunk", "respond"))
    size, positions = chunk.get("chunk_tokens", ChunkSettings.chunk_tokens), before.max_length if before else of_base
    if size >= positions:
        raise InputError(
            f"{where}: data.chunk: chunk_tokens {size:,} leaves no room in the {positions:,} positions of {own.start}; "
            "make it smaller by the length of an instruction and an answer"
        )
    longest = chunk["max_document_tokens"]
    if longest is None or longest > own.length:
        raise InputError(
            f"{where}: data.chunk: max_document_tokens is {longest}, and the round has a length of {own.length}; leave "
            "it out, or give at most so many"
        )
    if respond.get("engine") == "vllm" and respond["max_model_len"] <= longest:
        raise InputError(
            f"{where}: data.respond: max_model_len is {respond['max_model_len']}, and documents have up to {longest} "
            "tokens; leave it out, or make it larger by an instruction and an answer"
        )
    _check_questions(own, evaluate, of_base, where)


def _check_questions(own: told.Round, evaluate: Mapping[str, Any], of_base: int, where: str) -> None:
    """Base and model of the round are asked the same; vLLM may run both with other positions than their own."""
    further = evaluate.get("max_model_len") if evaluate.get("engine") == "vllm" else None
    positions, asked = further or min(of_base, own.max_length), max(own.asked_settings["lengths"], default=0)
    if asked > positions:
        whose = "max_model_len says" if further else "the base has" if positions == of_base else "the round has"
        raise InputError(
            f"{where}: evaluate: lengths go up to {asked:,} tokens, and {whose} {positions:,} positions; leave out "
            "what is longer, or ask with engine: vllm and max_model_len, which may be larger than a model's positions"
        )
