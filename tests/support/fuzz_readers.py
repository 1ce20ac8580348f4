"""Every reader of foreign files, each with a good input to start from. A new reader is one row of READERS.

`prepare` gets the workshop, a directory with good files of every kind, and returns (strategy of changed contents, what
reads one). Reading is all of it: what a command would do with the file before its expensive work.
"""

import asyncio
import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st
from support import small_evolution
from support.mutations import dump, mutated_bytes, mutated_json, mutated_lines, mutated_value
from support.published_pairs import published_row, text_pair
from support.small_corpus import make_document, save_stopping_model
from support.small_shards import make_record, write
from support.tiny_models import save_tiny
from support.tokenised_pairs import tokenised_record

from nemo_longpo.checkpoints.pickled import read_metadata
from nemo_longpo.conversion.inspection.inspect_model import format_report, inspect_model
from nemo_longpo.costs.model_shape import load_shape
from nemo_longpo.data_tools.corpus.source import CorpusSource
from nemo_longpo.data_tools.encoded import PairEncoder
from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.engines.server import _read_completion, _read_prompt_logps, _usage
from nemo_longpo.data_tools.engines.server_http import ServerFailure, ask_completion, ask_model, parse_address
from nemo_longpo.data_tools.model import load_chat, tokenizer_identity
from nemo_longpo.data_tools.pipeline.config import load_pipeline
from nemo_longpo.data_tools.prompts import Prompts, choose_prompts, load_prompts
from nemo_longpo.data_tools.published.conversation import Refused, template_ids
from nemo_longpo.data_tools.published.document import Limits, read_document
from nemo_longpo.data_tools.published.source import PublishedSource
from nemo_longpo.data_tools.runner.rows import PartsSource
from nemo_longpo.data_tools.stages.registry import StageCall
from nemo_longpo.evolution.evolution_file import load_evolution
from nemo_longpo.evolution.forecast import forecast
from nemo_longpo.evolution.rounds import evolution_steps
from nemo_longpo.shards.reader import ShardReader

Prepared = tuple[st.SearchStrategy[bytes], Callable[[bytes], object]]
TEXT_LINES = [{"id": f"d{index}", "text": make_document(index, 1), "meta": {"url": "x"}} for index in range(3)]


@dataclass(frozen=True)
class Reader:
    """`cost` is about how many times 0.5 ms a case takes; dear readers get fewer cases."""

    name: str
    prepare: Callable[["Workshop"], Prepared]
    cost: int = 1


class Workshop:
    """Good files, made once; readers change copies."""

    def __init__(self, directory: Path):
        self.directory = directory

    def folder(self, name: str) -> Path:
        folder = self.directory / name.replace(" ", "-").replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def chatting(self) -> Path:
        return save_stopping_model(self.directory / "chatting", "mistral")

    @cached_property
    def chat(self) -> Any:
        return load_chat(self.chatting)

    @cached_property
    def encoder(self) -> PairEncoder:
        return PairEncoder(self.chat, Prompts(), json.loads((self.chatting / "config.json").read_text())["vocab_size"])

    def copy_of_model(self, name: str, family: str) -> Path:
        return save_tiny(self.folder(name) / "model", family)

    @cached_property
    def scored(self) -> list[dict[str, Any]]:
        """Pairs as `score` leaves them."""
        found = []
        for index in range(2):
            pair = text_pair(index, 2)
            encoded = self.encoder.encode(_row(pair))
            logps = {name: [[-0.5] * len(ids) for ids in encoded.responses(name)] for name in ("chosen", "rejected")}
            found.append(encoded.scored(logps))
        return found


def _row(record: dict[str, Any]) -> Any:
    from nemo_longpo.data_tools.runner.rows import Row

    return Row(record, "pairs.jsonl, line 1")


def write_and(read: Callable[[Path], object], path: Path) -> Callable[[bytes], object]:
    def run(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return run


# What commands do with what they read


def read_pairs(encoder: PairEncoder, *, scored: bool = False) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        for row in PartsSource(path).rows():
            pair = encoder.encode(row)
            pair.long(), pair.short_prompts(), [pair.responses(name) for name in ("chosen", "rejected")]
            if scored:
                [pair.logps(name) for name in ("chosen", "rejected")]

    return read


def read_corpus(path: Path) -> None:
    for _, rows in CorpusSource([str(path)], rows_per_part=2).parts(lambda _: True):
        for row in rows:
            json.dumps(row.record, ensure_ascii=False).encode()


def read_published(workshop: Workshop) -> Callable[[Path], object]:
    template = template_ids(workshop.chat, workshop.encoder.vocab_size)

    def read(path: Path) -> None:
        source = PublishedSource([str(path)], split="train", id_field="id", rows_per_part=2)
        source.identity()
        for _, rows in source.parts(lambda _: True):
            for row in rows:
                try:
                    read_document(row.record["columns"], template, Limits(None, 2048))
                except Refused as refusal:
                    json.dumps(vars(refusal), ensure_ascii=False)

    return read


def look_at_model(path: Path) -> None:
    format_report(inspect_model(path.parent))
    load_shape(str(path.parent))


def load_tokenizer(path: Path) -> None:
    tokenizer_identity(load_chat(path.parent))


# Rows


def jsonl(records: Callable[[Workshop], list[Any]], read: Callable[[Workshop], Callable[[Path], object]]) -> Any:
    return lambda shop: (mutated_lines(records(shop)), write_and(read(shop), shop.folder("jsonl") / "a.jsonl"))


def compressed(
    suffix: str,
    compress: Callable[[bytes], bytes],
    records: Callable[[Workshop], list[Any]] = lambda _: TEXT_LINES,
    read: Callable[[Workshop], Callable[[Path], object]] = lambda _: read_corpus,
) -> Callable[[Workshop], Prepared]:
    def prepare(shop: Workshop) -> Prepared:
        content = compress(b"".join(dump(record) + b"\n" for record in records(shop)))
        return mutated_bytes(content), write_and(read(shop), shop.folder("compressed") / f"a.jsonl{suffix}")

    return prepare


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def parquet_bytes(rows: list[Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


@st.composite
def mutated_parquet(draw: st.DrawFn, rows: list[Any]) -> bytes:
    """Changed values, so that columns have other types or none, or changed bytes."""
    if draw(st.booleans()):
        return draw(mutated_bytes(parquet_bytes(rows)))
    try:
        return parquet_bytes([draw(mutated_value(rows[0]))])
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError, UnicodeError):
        return b"no table"


def model_file(name: str, family: str, read: Callable[[Path], object], *, lines: bool = False) -> Any:
    """A JSON file in a model directory; the others there stay good."""

    def prepare(shop: Workshop) -> Prepared:
        path = shop.copy_of_model(f"{name} {family} {read.__name__}", family) / name
        content = path.read_bytes()
        strategy = mutated_bytes(content) if lines else mutated_json(json.loads(content))
        return strategy, write_and(read, path)

    return prepare


def weights_header(shop: Workshop) -> Prepared:
    path = shop.copy_of_model("header", "mistral") / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        if draw(st.integers(0, 3)) == 0:
            return draw(mutated_bytes(whole[: 8 + length])) + data
        text = draw(mutated_json(header))
        return len(text).to_bytes(8, "little") + text + data

    return changed(), write_and(look_at_model, path)


def weights_index(shop: Workshop) -> Prepared:
    model = shop.copy_of_model("index", "mistral")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(str(model / "model-00001-of-00001.safetensors"), "pt") as file:
        names = dict.fromkeys(file.keys(), "model-00001-of-00001.safetensors")
    content = {"metadata": {"total_size": 1}, "weight_map": names}
    return mutated_json(content), write_and(look_at_model, model / "model.safetensors.index.json")


DATA_YAML: dict[str, Any] = {
    "x-shared": {"engine": "vllm"},
    "input": ["books", "papers.jsonl"],
    "model": "MODEL",
    "output": "work",
    "prompts": "prompts.json",
    "executors": {"gpu": {"type": "SlurmExecutor", "account": "team"}},
    "stages": {
        "chunk": {"chunk_tokens": 100, "domain": "auto"},
        "instruct": {"engine": "server", "base_url": ["http://a/v1"], "temperature": 0.5, "executor": "gpu"},
        "respond": {"env": {"CUDA_VISIBLE_DEVICES": "{rank}"}, "processes": 2},
        "filter": {"num_workers": 2},
    },
}


ONLY_YAML = (
    *("2001-01-01", "!!set {a, b}", "!!binary aGk=", "&a [*a]", "&a {a: *a}", "*nowhere", "1_000", "0x10", ".nan"),
    *("!x y", "{[a]: 1}", "{1: 2}", "{null: 1}", "{<<: 3}", "!!python/object:os.system {}", "- 1", "12:30:45", "0o7"),
    "{a: &x [1], b: [*x, *x], c: [*x, *x]}",
)


def read_pipeline(path: Path) -> None:
    pipeline = load_pipeline(path)
    for stage in pipeline.stages:
        " ".join(stage.call.words()).encode()


@st.composite
def mutated_yaml(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """As JSON, which is YAML; as YAML with changed bytes; or with what only YAML has."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return draw(mutated_json(content)).replace(b"[" * 100_000, b"[" * 2_000)  # the parser is slow
    text = yaml.safe_dump(content)
    if kind == 1:
        return draw(mutated_bytes(text.encode()))
    lines = text.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = lines[at].partition(":")[0] + ": " + draw(st.sampled_from(ONLY_YAML))
    return "\n".join(lines).encode()


def evolve_yaml(shop: Workshop) -> Prepared:
    """Read the file, and make the steps with all that `--dry-run` shows of them."""
    folder = shop.folder("evolve")
    small_evolution.programs(folder)
    told = small_evolution.content(folder) | {"hardware": {"gpu": "h100-80gb", "gpus": 8}, "prompts": None}
    told["train"] |= {"env": {"THREADS": "1"}, "launcher": ["srun"]}

    def read(path: Path) -> None:
        evolution = load_evolution(path)
        for step in evolution_steps(evolution):
            step.recorded_settings()
            "\n".join(step.command_lines()).encode()
            assert not any("\0" in word for word in (*step.command, *step.env, *step.env.values()))
        for own in forecast(evolution):
            "\n".join(own.lines()).encode()

    return mutated_yaml(told), write_and(read, folder / "evolve.yaml")


def chat_template(shop: Workshop) -> Prepared:
    model = shop.copy_of_model("template", "mistral")
    path = model / "chat_template.jinja"
    return mutated_bytes(path.read_bytes()), write_and(load_tokenizer, path)


def manifest(shop: Workshop) -> Prepared:
    directory = shop.folder("shards") / "made"
    write(directory, *(make_record(index) for index in range(3)))
    path = directory / "manifest.json"
    return mutated_json(json.loads(path.read_text())), write_and(lambda path: ShardReader(path.parent).lengths(), path)


def distributed_metadata(shop: Workshop) -> Prepared:
    import pickle

    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    size = torch.Size((4, 2))
    chunk = ChunkStorageMetadata(torch.Size((0, 0)), size)
    tensor = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), size, [chunk])
    index = MetadataIndex("module.a", torch.Size((0, 0)), 0)
    content = Metadata(
        {"module.a": tensor, "b": BytesStorageMetadata()}, storage_data={index: _StorageInfo("__0_0.distcp", 0, 16)}
    )
    path = shop.folder("metadata") / ".metadata"
    return mutated_bytes(pickle.dumps(content)), write_and(lambda path: read_metadata(path.parent), path)


PROMPT = [3, 4, 5, 6]
COMPLETION = {
    "choices": [{"index": 0, "finish_reason": "length", "token_ids": [7, 8], "prompt_token_ids": PROMPT, "text": "x"}],
    "usage": {"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}},
}
SCORES = {
    "choices": [
        {"finish_reason": "length", "prompt_logprobs": [None, *({str(t): {"logprob": -1.5}} for t in PROMPT[1:])]}
    ],
    "usage": None,
}
MODELS = {"data": [{"id": "tiny", "max_model_len": 4096, "parent": None}, {"id": "adapter"}]}


def server(reply: Any, ask: Callable[[httpx.AsyncClient], Any]) -> Callable[[Workshop], Prepared]:
    """Half of the replies are errors, with the body as the server's words."""

    @st.composite
    def replies(draw: st.DrawFn) -> bytes:
        status = draw(st.sampled_from((200, 200, 200, 400, 401, 503)))
        again = draw(st.sampled_from(("", "5", "-1", "²", "9" * 500, "Fri, 31 Dec 9999 23:59:59 GMT", "x, y", "nan")))
        return status.to_bytes(2, "big") + again.encode("latin-1") + b"\0" + draw(mutated_json(reply))

    def read(content: bytes) -> None:
        head, _, body = content[2:].partition(b"\0")

        async def run() -> None:
            response = httpx.Response(int.from_bytes(content[:2], "big"), content=body, headers={b"Retry-After": head})
            async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: response)) as client:
                with suppress(ServerFailure):
                    await ask(client)

        asyncio.run(run())

    return lambda _: (replies(), read)


ADDRESS = parse_address("http://me:secret@127.0.0.1:1/v1")


async def complete(client: httpx.AsyncClient) -> None:
    answer = await ask_completion(client, ADDRESS, {"prompt": PROMPT, "max_tokens": 2}, 9.0)
    completion = _read_completion(
        answer["choices"][0], ADDRESS.url, PROMPT, Sampling(max_new_tokens=2, stop_ids=frozenset({2})), 500
    )
    sum(vars(_usage(answer, 4, completion)).values())


async def score(client: httpx.AsyncClient) -> None:
    answer = await ask_completion(client, ADDRESS, {"prompt": PROMPT, "max_tokens": 1}, 9.0)
    _read_prompt_logps(answer["choices"][0], ADDRESS.url, PROMPT)
    sum(vars(_usage(answer, 4, None)).values())


async def ask(client: httpx.AsyncClient) -> None:
    await ask_model(client, ADDRESS)


def scored_output(shop: Workshop) -> Path:
    """The directory of a finished `score`."""
    directory = shop.folder("scored")
    from nemo_longpo.data_tools.model import model_identity
    from nemo_longpo.data_tools.settings import EngineSettings

    settings = {
        "ref_context": "short",
        "engine": EngineSettings().recorded(),
        "prompts": Prompts().to_dict(),
        "model": model_identity(shop.chatting, EngineSettings()),
        **tokenizer_identity(shop.chat),
    }
    lines = "".join(json.dumps(record) + "\n" for record in shop.scored)
    (directory / "part-00000.jsonl").write_text(lines)
    content = {"stage": "score", "parts": 1, "settings": settings, "input": {}, "history": {"respond": {"seed": 0}}}
    (directory / "settings.json").write_text(json.dumps(content))
    return directory


def stage_settings(shop: Workshop) -> Prepared:
    directory = scored_output(shop)

    def read(path: Path) -> None:
        source = PartsSource(path.parent)
        choose_prompts(None, source.history())
        output = shop.folder("packed") / "none"
        inputs, model = (str(path.parent),), shop.chatting
        StageCall(stage="pack", inputs=inputs, output=output, model_given=model, values={"dry_run": True})()

    path = directory / "settings.json"
    return mutated_json(json.loads(path.read_text())), write_and(read, path)


READERS = [
    Reader("pairs", jsonl(lambda _: [text_pair(0, 2), text_pair(1, 2)], lambda shop: read_pairs(shop.encoder)), 3),
    Reader(
        "tokenised pairs",
        jsonl(lambda shop: [tokenised_record(shop.chat, 0)], lambda shop: read_pairs(shop.encoder)),
        2,
    ),
    Reader("scored pairs", jsonl(lambda shop: shop.scored, lambda shop: read_pairs(shop.encoder, scored=True)), 3),
    Reader("corpus jsonl", jsonl(lambda _: TEXT_LINES, lambda _: read_corpus)),
    Reader(
        "corpus text",
        lambda shop: (
            mutated_bytes(make_document(0, 1).encode()),
            write_and(read_corpus, shop.folder("text") / "a.txt"),
        ),
    ),
    Reader("corpus gzip", compressed(".gz", gzip.compress)),
    Reader("corpus zstd", compressed(".zst", zstd)),
    Reader(
        "corpus parquet",
        lambda shop: (mutated_parquet(TEXT_LINES), write_and(read_corpus, shop.folder("parquet") / "a.parquet")),
        2,
    ),
    Reader("published jsonl", jsonl(lambda shop: [published_row(shop.chat, text_pair(0, 2))], read_published), 4),
    Reader(
        "published zstd",
        compressed(".zst", zstd, lambda shop: [published_row(shop.chat, text_pair(0, 2))], read_published),
        4,
    ),
    Reader(
        "published parquet",
        lambda shop: (
            mutated_parquet([published_row(shop.chat, text_pair(0, 2))]),
            write_and(read_published(shop), shop.folder("published") / "a.parquet"),
        ),
        6,
    ),
    *(
        Reader(f"config {family}", model_file("config.json", family, look_at_model), 15)
        for family in ("mistral", "qwen2", "llama")
    ),
    Reader("generation config", model_file("generation_config.json", "llama", look_at_model), 15),
    Reader("generation config for data", model_file("generation_config.json", "llama", load_tokenizer), 60),
    Reader("index", weights_index, 15),
    Reader("safetensors", weights_header, 15),
    Reader("tokenizer", model_file("tokenizer.json", "qwen2", load_tokenizer), 60),
    Reader("tokenizer in conversion", model_file("tokenizer.json", "qwen2", look_at_model), 15),
    Reader("tokenizer config", model_file("tokenizer_config.json", "mistral", load_tokenizer), 60),
    Reader("tokenizer config in conversion", model_file("tokenizer_config.json", "mistral", look_at_model), 15),
    Reader("special tokens", model_file("special_tokens_map.json", "mistral", load_tokenizer), 60),
    Reader("chat template", chat_template, 60),
    Reader(
        "data.yaml",
        lambda shop: (mutated_yaml(DATA_YAML), write_and(read_pipeline, shop.folder("yaml") / "data.yaml")),
        6,
    ),
    Reader("evolve.yaml", evolve_yaml, 12),
    Reader(
        "prompts",
        lambda shop: (mutated_json(Prompts().to_dict()), write_and(load_prompts, shop.folder("prompts") / "p.json")),
    ),
    Reader("manifest", manifest, 3),
    Reader("metadata", distributed_metadata, 1),
    Reader("settings of a stage", stage_settings, 60),
    Reader("completions of a server", server(COMPLETION, complete), 3),
    Reader("scores of a server", server(SCORES, score), 3),
    Reader("models of a server", server(MODELS, ask), 3),
]
