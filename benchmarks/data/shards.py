"""How fast is a record read from shards, and how large are shards beside the same pairs in the published layout?

    python -m benchmarks.data.shards

Reading: records of 512K tokens, in random order. Warm: their pages are in memory. Cold: the kernel was asked to drop
the file's pages before every read, and the process's count of bytes that came from storage shows whether it did. A
read ends when every array has been copied, but for the short prompts, which most runs do not want. Opening the
directory, once, is timed apart.
Size: the same pairs as shards, with and without short prompts, and as `datasets` and Parquet store the published
columns (ids, labels and NLL labels of both conversations and of the reference sequences, masks left out).
Writes shards.json and shards.md into benchmarks/results.
"""

import argparse
import dataclasses
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from ..common.results import origin, parser, write_results

import datasets  # isort: skip
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from nemo_longpo.shards.manifest import Provenance, ReferenceModel
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.writer import ShardWriter

VOCABULARY = 32_768
TURNS, ANSWER, INSTRUCTION = 4, 512, 32


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--records", type=int, default=64, help="of 512K tokens, to read")
    flags.add_argument("--documents", type=int, default=16, help="of 128K tokens, to compare sizes")
    flags.add_argument("--chunk-tokens", type=int, default=8192, help="of each reference prompt")
    flags.add_argument("--directory", type=Path, help="where to write for a while (default: the temp folder)")
    arguments = flags.parse_args()
    work = Path(tempfile.mkdtemp(prefix="shards_", dir=arguments.directory))
    try:
        reading = measure_reading(work / "read", arguments.records, arguments.chunk_tokens)
        sizes = measure_sizes(work / "size", arguments.documents, arguments.chunk_tokens)
    finally:
        shutil.rmtree(work)
    result = origin(("pyarrow", "datasets")) | {"reading": reading, "sizes": sizes}
    write_results("shards", result, [*reading_lines(reading), "", *size_lines(sizes, arguments)])


def make_record(rng: np.random.Generator, name: str, tokens: int, chunk: int) -> PairRecord:
    """A pair whose longer conversation has `tokens` tokens, with ids as unevenly frequent as those of text.

    Its short prompts have `chunk` tokens each.
    """
    instructions = [draw_ids(rng, INSTRUCTION) for _ in range(TURNS - 1)]
    branches = [np.concatenate([draw_ids(rng, ANSWER), *with_answers(rng, instructions)]) for _ in range(2)]
    spans = np.array([[turn * (ANSWER + INSTRUCTION), turn * (ANSWER + INSTRUCTION) + ANSWER] for turn in range(TURNS)])
    trunk = tokens - len(branches[0])
    logps = [tuple(-rng.gamma(0.5, 2.0, ANSWER).astype(np.float32) for _ in range(TURNS)) for _ in range(2)]
    return PairRecord(
        doc_id=name,
        trunk_ids=draw_ids(rng, trunk),
        chosen_ids=branches[0],
        rejected_ids=branches[1],
        chosen_spans=spans.astype(np.int32),
        rejected_spans=spans.astype(np.int32),
        nll_ignore_spans=np.array([[0, 4], [trunk - 4, trunk]], np.int32),
        ref_chosen_logps=logps[0],
        ref_rejected_logps=logps[1],
        ref_context="short",
        short_prompt_ids=tuple(draw_ids(rng, chunk) for _ in range(TURNS)),
    )


def with_answers(rng: np.random.Generator, instructions: list[np.ndarray]) -> list[np.ndarray]:
    return [ids for instruction in instructions for ids in (instruction, draw_ids(rng, ANSWER))]


def draw_ids(rng: np.random.Generator, count: int) -> np.ndarray:
    """Zipf's law over the vocabulary: rank r has a probability in proportion to 1 / r."""
    return (VOCABULARY ** rng.random(count)).astype(np.int32) - 1


def write_shards(directory: Path, records: list[PairRecord]) -> Path:
    provenance = Provenance(
        tokenizer_fingerprint="0" * 64,
        chat_template_hash="0" * 64,
        vocab_size=VOCABULARY,
        reference=ReferenceModel("0" * 64, {}, "float32"),
        ref_context="short",
    )
    with ShardWriter(directory, provenance) as writer:
        for record in records:
            writer.add(record)
    return directory


def measure_reading(directory: Path, count: int, chunk: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    directory.parent.mkdir(exist_ok=True)
    write_shards(directory, [make_record(rng, f"record-{index}", 1 << 19, chunk) for index in range(count)])
    order = random.Random(0).sample(range(count), count)
    drop_pages(directory)
    started, stored = time.perf_counter(), stored_bytes()
    reader = ShardReader(directory, short_prompts=False)
    reader.lengths()
    opening, opening_stored = time.perf_counter() - started, stored_bytes() - stored
    cold, stored = [], stored_bytes()
    for index in order:
        drop_pages(directory)
        cold.append(read_once(reader, index))
    stored = stored_bytes() - stored
    warm = [[read_once(reader, index) for index in order] for _ in range(2)][1]
    return {
        "records": count,
        "tokens": 1 << 19,
        "warm": spread(warm),
        "cold": spread(cold),
        "megabytes_from_storage_per_cold_read": stored / count / 1e6,
        "opening_cold_milliseconds": 1e3 * opening,
        "opening_cold_megabytes_from_storage": opening_stored / 1e6,
        "megabytes": size_of(directory) / 1e6,
    }


def read_once(reader: ShardReader, index: int) -> float:
    """Seconds."""
    started = time.perf_counter()
    copy(reader[index])
    return time.perf_counter() - started


def copy(record: PairRecord) -> None:
    """Touch every page."""
    for value in (record.trunk_ids, record.chosen_ids, record.rejected_ids, *record.ref_chosen_logps):
        value.copy()


def drop_pages(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stored_bytes() -> int:
    """Bytes that storage delivered to this process so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(1e3 * value for value in seconds)
    return {"median": median(ordered), "p90": ordered[int(0.9 * len(ordered))], "max": ordered[-1]}


def measure_sizes(directory: Path, count: int, chunk: int) -> dict[str, int]:
    rng = np.random.default_rng(1)
    directory.mkdir(parents=True)
    records = [make_record(rng, f"record-{index}", 1 << 17, chunk) for index in range(count)]
    rows = [published(record) for record in records]
    plain = [dataclasses.replace(record, short_prompt_ids=None) for record in records]
    sizes = {
        "shards": size_of(write_shards(directory / "shards", records)),
        "shards without short prompts": size_of(write_shards(directory / "plain", plain)),
    }
    for kind in (pa.int32(), pa.int64()):
        table = pa.table({name: column([row[name] for row in rows], kind) for name in rows[0]})
        datasets.Dataset(table).save_to_disk(directory / f"saved-{kind}")
        sizes[f"saved dataset, {kind}"] = size_of(directory / f"saved-{kind}")
    for compression in ("snappy", "zstd"):
        path = directory / compression
        path.mkdir()
        pyarrow.parquet.write_table(table, path / "rows.parquet", compression=compression, row_group_size=100)
        sizes[f"Parquet, int64, {compression}"] = size_of(path)
    return sizes


def column(values: list[Any], kind: pa.DataType) -> pa.Array:
    nested = isinstance(values[0], list)
    return pa.array(values, pa.list_(pa.list_(kind)) if nested else pa.list_(kind))


def published(record: PairRecord) -> dict[str, Any]:
    """The columns of one row, int64 arrays."""
    row: dict[str, Any] = {}
    prompts = record.short_prompt_ids
    assert prompts is not None
    for branch in ("chosen", "rejected"):
        ids, spans = getattr(record, f"{branch}_ids"), getattr(record, f"{branch}_spans")
        whole = np.concatenate([record.trunk_ids, ids]).astype(np.int64)
        labels = np.full(len(whole), -100)
        for start, end in spans + len(record.trunk_ids):
            labels[start:end] = whole[start:end]
        row |= {f"{branch}_input_ids": whole, f"{branch}_labels": labels, f"{branch}_lm_labels": whole}
        answers = [ids[start:end] for start, end in spans]
        short = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
        row[f"ref_{branch}_input_ids"] = short
        row[f"ref_{branch}_labels"] = [
            np.concatenate([np.full(len(prompt), -100), answer])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    return row


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def reading_lines(reading: dict[str, Any]) -> list[str]:
    lines = [
        f"## Reading one of {reading['records']} records of {reading['tokens']:,} tokens, in milliseconds",
        "",
        "| | median | 90 % below | slowest |",
        "|---|---|---|---|",
    ]
    for name, label in (("warm", "pages in memory"), ("cold", "pages dropped")):
        found = reading[name]
        lines.append(f"| {label} | {found['median']:.2f} | {found['p90']:.2f} | {found['max']:.2f} |")
    read, opened = reading["megabytes_from_storage_per_cold_read"], reading["opening_cold_megabytes_from_storage"]
    opening = reading["opening_cold_milliseconds"]
    return [
        *lines,
        "",
        f"A read with dropped pages took {read:.1f} MB from storage. Opening the directory of "
        f"{reading['megabytes']:.0f} MB before the first read, also with dropped pages: {opening:.0f} ms, "
        f"{opened:.0f} MB.",
    ]


def size_lines(sizes: dict[str, int], arguments: argparse.Namespace) -> list[str]:
    lines = [
        f"## Size of {arguments.documents} pairs of 131,072 tokens, {TURNS} turns, reference prompts of "
        f"{arguments.chunk_tokens:,} tokens",
        "",
        "| | MB | shards are |",
        "|---|---|---|",
    ]
    own = sizes["shards"]
    return lines + [f"| {name} | {size / 1e6:.1f} | {own / size:.0%} |" for name, size in sizes.items()]


if __name__ == "__main__":
    main()
