"""All settings of all stages: default, range and one line of help.

The command line and the file of `longpo data run` are both derived from these classes (see options.py). Nothing heavy
is imported here, so that `--help` is instant.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from nemo_longpo.errors import InputError

from .options import Settings, setting

DEFAULT_SPLIT = "train"
"""The split to take of a published dataset with several."""


@dataclass(frozen=True, kw_only=True)
class ChunkSettings(Settings):
    """Lengths in tokens of the model. Documents outside the limits are left out, and counted."""

    chunk_tokens: int = setting(32768, "longest chunk", minimum=1)
    chunks_per_document: int = setting(4, "most chunks drawn from one document", minimum=1)
    min_document_tokens: int = setting(1, "leave out shorter documents", minimum=1)
    max_document_tokens: int | None = setting(None, "leave out longer documents", minimum=1)
    domain: Literal["auto", "prose", "latex", "code"] = setting(
        "auto", "where documents may be cut; auto goes by the suffix of a name, else by the text"
    )
    text_field: str = setting("text", "name of the field or column that holds the text")
    id_field: str = setting("id", "name of the one that holds the document's id, if there is one")
    seed: int = setting(0, "for drawing chunks")


@dataclass(frozen=True, kw_only=True)
class InstructSettings(Settings):
    """One request asks for `pool_size` instructions; with 1, the whole answer is the instruction."""

    pool_size: int = setting(4, "instructions to draw one from", minimum=1)
    structured_output: bool = setting(True, "hold the answer to a JSON list, where the engine can (vllm, server)")
    check_requests: bool = setting(True, "leave out what is no request, or none that a whole document can answer")
    max_new_tokens: int = setting(512, "longest answer", minimum=1)
    temperature: float = setting(0.7, "0 is greedy", minimum=0)
    top_p: float = setting(0.9, "draw from the smallest set of tokens with this probability", above=0, maximum=1)
    lead_in_probability: float = setting(
        0.5, "how often words such as 'Based on the document:' lead in", minimum=0, maximum=1
    )
    seed: int = setting(0, "for sampling and drawing")


@dataclass(frozen=True)
class RespondSettings(Settings):
    """How answers are drawn. Greedy by default."""

    max_new_tokens: int = setting(1024, "longest answer", minimum=1)
    temperature: float = setting(0.0, "0 is greedy", minimum=0)
    top_p: float = setting(1.0, "draw from the smallest set of tokens with this probability", above=0, maximum=1)
    seed: int = setting(0, "for sampling")


@dataclass(frozen=True, kw_only=True)
class FilterSettings(Settings):
    """What makes a turn useless for training. In scripts without spaces, characters count as words.

    Training should make refusing and copying less likely, so only chosen answers are checked for them. A loop is long
    and easy to predict, and would outweigh everything else in either answer.
    """

    keep_truncated: Literal["none", "rejected"] = setting("none", "answers that may have been cut off")
    drop_identical: bool = setting(True, "leave out a turn whose answers are the same text")
    max_similarity: float = setting(0.98, "most 3-grams that the two answers may share; 1 is off", minimum=0, maximum=1)
    drop_refusals: Literal["none", "chosen", "both"] = setting(
        "chosen", "answers that may not refuse, or say that the text is silent"
    )
    refusal_window: int = setting(120, "characters at an answer's beginning that make it a refusal", minimum=1)
    drop_loops: Literal["none", "chosen", "both"] = setting("both", "answers that may not be stuck in a loop")
    loop_words: int = setting(40, "words of four or more repeats in a row that make a loop", minimum=4)
    min_compressed: float = setting(
        0.1, "least size after zlib compression, as a share; smaller is a loop; 0 is off", minimum=0, maximum=1
    )
    drop_copies: Literal["none", "chosen", "both"] = setting("chosen", "answers that may not repeat the prompt")
    copied_words: int = setting(80, "shortest stretch of the prompt that counts as a copy", minimum=1)
    copied_share: float = setting(0.8, "share of an answer that makes it a copy", above=0, maximum=1)
    max_instruction_similarity: float = setting(
        0.85, "most 3-grams that two instructions of a document may share; 1 is off", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class ScoreSettings(Settings):
    """What the reference model reads before an answer, and how the engine is checked against Hugging Face."""

    ref_context: Literal["short", "long"] = setting("short", "the chunk (short, LongPO) or the document (long, DPO)")
    verify_samples: int = setting(
        2,
        "short sequences to score again with Hugging Face, once per output; 0 checks nothing",
        minimum=0,
        recorded=False,
    )
    verify_device: str = setting("auto", "for that; auto is a GPU with room for it, else the CPU", recorded=False)
    verify_tolerance: float = setting(
        1e-3, "mean difference per token to allow beside that of the dtype", above=0, recorded=False
    )


@dataclass(frozen=True)
class PackSettings(Settings):
    """The size of shard files."""

    max_records: int = setting(1024, "documents per file", minimum=1)
    max_bytes: int = setting(1 << 30, "bytes per file", minimum=1)
    dry_run: bool = setting(
        False, "only check the input and the settings, and say whether the shards are missing", recorded=False
    )


@dataclass(frozen=True)
class ImportSettings(Settings):
    """Which columns of a tokenised dataset are read, and which of its documents are taken."""

    split: str | None = setting(None, f"part of a dataset that has several; {DEFAULT_SPLIT} if no name spells another")
    id_field: str = setting("id", "column with names of documents; without it they are named by dataset and row")
    max_tokens: int | None = setting(None, "leave out documents with a longer conversation", minimum=1)

    def recorded(self) -> dict[str, Any]:
        return super().recorded() | {"split": self.split or DEFAULT_SPLIT}


@dataclass(frozen=True, kw_only=True)
class WorkShare(Settings):
    """The share of the parts that this process makes, and the size of parts if the input has none.

    With the defaults, a part holds 32 documents of 32K tokens (128 KiB each), or 8 of 128K tokens.
    """

    rank: int = setting(0, "this process's number", minimum=0)
    world_size: int = setting(1, "how many processes share the parts", minimum=1)
    rank_from_environment: bool = setting(False, "take rank and world size from Slurm, torchrun, MPI or Kubernetes")
    part_size: int = setting(32, "most documents per part, where the input has no parts", minimum=1)
    part_bytes: int = setting(
        1 << 22,
        "most bytes of text per part, where the input has no parts; a longer document is one by itself",
        minimum=1,
    )
    dry_run: bool = setting(False, "only check the input and the settings, and say whether anything is missing")


@dataclass(frozen=True, kw_only=True)
class CpuWorkShare(WorkShare):
    """For stages without a model: they can also share this process's parts between processes of one machine."""

    num_workers: int = setting(1, "processes to use on this machine", minimum=1)


@dataclass(frozen=True)
class TemplateKwargs(Settings):
    """Recorded with an output only if given: what the model's chat template is told beside the messages."""

    chat_template_kwargs: str | None = setting(
        None,
        "values that the chat template reads, as JSON: '{\"enable_thinking\": false}' for answers of Qwen3 that do not "
        "think; by default those of the stages before, else none",
        recorded=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.values()

    def values(self) -> dict[str, Any]:
        """Raises InputError if they are no JSON object of numbers, texts, true and false."""
        try:
            found = json.loads(self.chat_template_kwargs or "{}")
        except ValueError:
            found = None
        kinds = bool | int | float | str
        if not isinstance(found, dict) or not all(isinstance(value, kinds) for value in found.values()):
            raise InputError(
                f"chat_template_kwargs {self.chat_template_kwargs!r} must be a JSON object of numbers, texts, true and "
                'false, such as {"enable_thinking": false}'
            )
        return found

    def or_recorded(self, history: Mapping[str, Any]) -> dict[str, Any]:
        """The given values; else those of the latest of the stages before, by name, that recorded some."""
        if self.chat_template_kwargs is not None:
            return self.values()
        recorded = [
            found["chat_template_kwargs"]
            for found in history.values()
            if isinstance(found, dict) and "chat_template_kwargs" in found
        ]
        return TemplateKwargs(json.dumps(recorded[-1])).values() if recorded else {}


@dataclass(frozen=True)
class TemplateSettings(Settings):
    """Recorded with an output only if the template prints a date."""

    chat_date: str | None = setting(
        None,
        "date that a chat template prints, YYYY-MM-DD; by default that of the stages before, else today",
        recorded=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.day()
        except ValueError as error:
            raise InputError(f"chat_date {self.chat_date!r} must be a date such as 2026-03-31") from error

    def day(self) -> date | None:
        return None if self.chat_date is None else date.fromisoformat(self.chat_date)


@dataclass(frozen=True)
class EngineSettings(Settings):
    """Which library runs the model, and how the model is loaded. All of these may change the output."""

    engine: Literal["transformers", "vllm", "server"] = setting("transformers", "what runs the model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", "auto is the checkpoint's own")
    rope_theta: float | None = setting(None, "run the model with another RoPE base than its own", above=0)


@dataclass(frozen=True)
class TransformersSettings(Settings):
    """With `--engine transformers`."""

    device: str = setting("auto", "such as cpu or cuda:0; auto is a GPU if there is one")
    batch_tokens: int = setting(16384, "most padded tokens in one batch", minimum=1)


@dataclass(frozen=True, kw_only=True)
class VllmSettings(Settings):
    """With `--engine vllm`."""

    tensor_parallel_size: int = setting(1, "GPUs that share the model", minimum=1)
    max_model_len: int | None = setting(
        None, "longest request in tokens; by default the model's own context", minimum=1
    )
    max_num_seqs: int = setting(64, "most requests running at once", minimum=1)
    max_num_batched_tokens: int | None = setting(
        None, "most tokens in one step; by default vLLM's choice, on CPU a whole prompt", minimum=1
    )
    gpu_memory_utilization: float = setting(0.9, "share of the GPU's memory", above=0, maximum=1)
    kv_cache_memory_bytes: int | None = setting(
        None, "size of the KV cache; by default what the GPU has left, on CPU 4 GiB", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """With `--engine server`: vLLM's OpenAI-compatible servers, all with the same model."""

    base_url: tuple[str, ...] = setting((), "such as http://127.0.0.1:8000/v1; several share the requests")
    concurrency: int = setting(32, "most requests in flight per server", minimum=1)
    timeout: float = setting(600.0, "seconds until a request counts as lost", above=0)
    retries: int = setting(
        15, "tries after a failed one, with growing pauses (15: about four minutes), before giving up", minimum=0
    )
    prefix_tokens: int = setting(512, "requests that begin with the same tokens share a server", minimum=1)


ENGINE_SETTINGS: tuple[type[Settings], ...] = (EngineSettings, TransformersSettings, VllmSettings, ServerSettings)


def heading(kind: type[Settings]) -> str | None:
    """Return what stands above the settings of one engine in `--help`; None for all others."""
    return (kind.__doc__ or "").rstrip(".").replace("`", "") if kind in ENGINE_SETTINGS[1:] else None
