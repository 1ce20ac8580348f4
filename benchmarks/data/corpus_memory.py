"""Measure memory and speed of `longpo data chunk` on a large corpus, and those of the tokenizer alone.

Makes a corpus of random prose (one JSONL file, documents of 0.1 to 1 MB) and a tokenizer of 8,000 tokens in a temporary
directory, runs the command once per number of workers, and writes OUTPUT/corpus_memory.json and .md. A process's peak
is what the kernel noted for it (VmHWM); the total is the largest sum of all processes' resident memory, looked at ten
times a second, in which pages that processes share count several times.

    python -m benchmarks.data.corpus_memory --gigabytes 2 --workers 1 2
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nemo_longpo.data_tools.corpus.source import CorpusSource

from .. import RESULTS
from ..common.processes import family
from ..common.results import command, parser

MB = 1e6
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
)
GENERATION = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
CHUNK_TOKENS = 8192
PART_SIZE = 32


def prose(seed: int) -> Iterator[str]:
    """Endless paragraphs of made-up words, frequent ones short, as in a natural language."""
    choose = random.Random(seed)
    letters = ("etaoinshrdlu" * 3) + "cmfwypvbgkjqxz"
    words = ["".join(choose.choices(letters, k=3 + min(9, rank // 300 + choose.randrange(3)))) for rank in range(8000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    sentences = []
    for _ in range(20000):
        chosen = choose.choices(words, weights, k=choose.randrange(6, 28))
        sentences.append(" ".join(chosen).capitalize() + choose.choice((".", ".", ".", "?", ", 1984.")))
    while True:
        yield " ".join(choose.choices(sentences, k=choose.randrange(3, 9)))


def write_corpus(path: Path, size: int) -> int:
    """Documents of 0.1 to 1 MB until the file has about `size` bytes; returns how many."""
    choose = random.Random(1)
    pool = list(islice(prose(0), 20000))
    average = sum(map(len, pool)) / len(pool) + 2
    written = documents = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            paragraphs = choose.choices(pool, k=int(choose.uniform(0.1, 1.0) * MB / average))
            written += file.write(json.dumps({"text": "\n\n".join(paragraphs)}) + "\n")
            documents += 1
    return documents


def write_model(directory: Path) -> PreTrainedTokenizerFast:
    """All that chunking needs of a model: a configuration and a tokenizer with a chat template."""
    directory.mkdir()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    paragraphs = prose(0)
    trainer = trainers.BpeTrainer(
        vocab_size=8000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator((next(paragraphs) for _ in range(3000)), trainer)
    special = ["<|user|>", "<|assistant|>", "<|end|>"]
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        additional_special_tokens=special[:2],
        chat_template=TEMPLATE + GENERATION,
        model_max_length=1 << 20,
    )
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 32768}))
    return tokenizer


def measure_tokenizer(corpus: Path, tokenizer: PreTrainedTokenizerFast, megabytes: float = 10) -> dict[str, Any]:
    """Plain tokenisation of whole documents in one process, without offsets."""
    seconds, characters, tokens = 0.0, 0, 0  # of CPU time
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            start = time.process_time()
            tokens += len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            seconds += time.process_time() - start
            characters += len(text)
            if characters > megabytes * MB:
                break
    return {"megabytes": characters / MB, "megabytes_per_cpu_second": characters / MB / seconds, "tokens": tokens}


def measure_index(corpus: Path) -> dict[str, Any]:
    """The pass over the corpus that checks it and cuts the parts."""
    start = time.process_time()
    CorpusSource([str(corpus)])
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "megabytes_per_cpu_second": corpus.stat().st_size / MB / seconds}


def measure_chunk(
    corpus: Path, model: Path, output: Path, workers: int, parts: int, minutes: float | None
) -> dict[str, Any]:
    """One run of the command, watched from outside, and stopped after so many minutes."""
    words = ["chunk", "--input", corpus, "--model", model, "--output", output, "--num-workers", workers, "--json"]
    code = "import sys; from nemo_longpo.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "data",
        *map(str, words),
        "--chunk-tokens",
        str(CHUNK_TOKENS),
        "--part-size",
        str(PART_SIZE),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    stopped = False
    peaks: dict[int, float] = {}
    used: dict[int, float] = {}
    total = 0.0
    while process.poll() is None:
        resident = {pid: memory for pid in family(process.pid) if (memory := memory_of(pid)) is not None}
        peaks |= {pid: memory["VmHWM"] for pid, memory in resident.items()}
        used |= {pid: seconds for pid in resident if (seconds := cpu_of(pid)) is not None}
        total = max(total, sum(memory["VmRSS"] for memory in resident.values()))
        if not stopped and minutes is not None and time.perf_counter() - start > 60 * minutes:
            stopped = True
            os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    printed = process.communicate()[0]
    cpu_seconds = sum(used.values())
    if process.returncode != 0 and not stopped:
        raise SystemExit(f"the command failed with status {process.returncode}")
    finished = len(list(output.glob("part-*.jsonl")))
    megabytes = corpus.stat().st_size / MB * finished / parts
    return {
        "workers": workers,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "finished_parts": finished,
        "megabytes_per_second": megabytes / seconds,
        "megabytes_per_cpu_second": megabytes / cpu_seconds,
        "peak_megabytes_per_process": sorted(peaks.values(), reverse=True)[: workers + 1],
        "peak_megabytes_together": total,
        "report": None if stopped else json.loads(printed)["report"],
    }


def cpu_of(pid: int) -> float | None:
    """CPU seconds that a process has used, or None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> dict[str, float] | None:
    """VmRSS and VmHWM in MB, or None if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = {
        line.split(":")[0]: int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(("VmRSS", "VmHWM"))
    }
    return found or None


def as_markdown(result: dict[str, Any]) -> str:
    corpus, parts = result["corpus"], result["parts"]
    alone, index = (result[name]["megabytes_per_cpu_second"] for name in ("tokenizer_alone", "index"))
    rows = [
        f"| {run['workers']} | {run['finished_parts']} of {parts} | {run['seconds']:.0f} | {run['cpu_seconds']:.0f} | "
        f"{run['megabytes_per_second']:.2f} | {run['megabytes_per_cpu_second']:.2f} | "
        f"{', '.join(f'{peak:.0f}' for peak in run['peak_megabytes_per_process'])} | "
        f"{run['peak_megabytes_together']:.0f} |"
        for run in result["runs"]
    ]
    return f"""# Memory and speed of `longpo data chunk`

`{result["command"]}` on {result["machine"]}.

Corpus: {corpus["megabytes"]:.0f} MB in {corpus["documents"]} documents of 0.1 to 1 MB, one JSONL file; parts of
{PART_SIZE} documents, chunks of {CHUNK_TOKENS} tokens. Per CPU second, the tokenizer alone (whole documents, no
offsets) reads {alone:.2f} MB, and the pass that checks and indexes the corpus {index:.0f} MB. An idle process with all
libraries loaded takes {result["idle_megabytes"]:.0f} MB.

| workers | parts made | seconds | CPU seconds | MB per second | MB per CPU second | peak MB of each | together |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def idle_memory(model: Path) -> float:
    """Peak MB of a process that has loaded the libraries and the tokenizer, and nothing else."""
    code = (
        "import sys, resource; import nemo_longpo.data_tools.stages.chunk; from nemo_longpo.data_tools.model import "
        "load_chat; load_chat(sys.argv[1]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) * 1024 / MB


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--gigabytes", type=float, default=2.0, help="size of the corpus (default: %(default)s)")
    flags.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="runs (default: %(default)s)")
    flags.add_argument("--minutes", type=float, help="stop every run after so long; the peaks are those until then")
    flags.add_argument("--output", type=Path, default=RESULTS)
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, model = Path(folder) / "corpus.jsonl", Path(folder) / "model"
        documents = write_corpus(corpus, int(arguments.gigabytes * 1e9))
        tokenizer = write_model(model)
        result = {
            "command": command(),
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
            "corpus": {"megabytes": corpus.stat().st_size / MB, "documents": documents},
            "tokenizer_alone": measure_tokenizer(corpus, tokenizer),
            "index": measure_index(corpus),
            "idle_megabytes": idle_memory(model),
            "parts": -(-documents // PART_SIZE),
            "runs": [],
        }
        for workers in arguments.workers:
            result["runs"].append(
                measure_chunk(
                    corpus, model, Path(folder) / f"chunks-{workers}", workers, result["parts"], arguments.minutes
                )
            )
            # Written after every run: the next one may take an hour.
            arguments.output.mkdir(parents=True, exist_ok=True)
            (arguments.output / "corpus_memory.json").write_text(json.dumps(result, indent=2) + "\n")
            (arguments.output / "corpus_memory.md").write_text(as_markdown(result))
            print(as_markdown(result))


if __name__ == "__main__":
    main()
