"""The main job as a list of public commands: documents in, a trained and exported model out."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo.checkpoints import run_directory
from nemo_longpo.errors import InputError

from .corpus import write_corpus

DEMO_DIR = Path(__file__).resolve().parent
BASE_MODEL = DEMO_DIR / "model"
PROMPTS = DEMO_DIR / "prompts.json"
BASE_LENGTH = 128  # up to here the base model answers every question
SHORT_LENGTHS = (64, 96, BASE_LENGTH)


@dataclass(frozen=True)
class DemoSettings:
    """What the demo can be run with; the defaults reach the bar of 90 % within minutes on two cores."""

    output: Path
    documents: int = 200
    tokens: int = 1024
    chunk_tokens: int = 96
    steps: int = 100
    learning_rate: float = 5e-4
    preference_weight: float = 0.1
    beta: float = 0.1
    rope_theta: float = 1e5
    samples: int = 64
    seed: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Document lengths to measure, in tokens: the short ones, the trained one, and some between."""
        return (*SHORT_LENGTHS, *sorted({n for n in (256, 512) if n < self.tokens} | {self.tokens}))


Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One step of the demo: a command, or a function that writes a file itself.

    `threads` bounds each process's threads; None
    leaves all cores to it. `progress` says how far the running stage is.
    """

    name: str
    title: str
    command: Command | None = None
    function: Callable[[], None] | None = None
    threads: int | None = None
    progress: Callable[[], str] | None = None


def public_command(name: str) -> str:
    """The path of a console script of this environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise InputError(
            f"{path} does not exist; install nemo_longpo with its [nemo,demo] extras into this environment."
        )
    return str(path)


def metrics_file(output: Path) -> Path:
    """Where the training writes one line of metrics per step."""
    return run_directory.metrics_file(training_directory(output))


def training_directory(output: Path) -> Path:
    """The run's directory, which export takes as a whole."""
    return output / "training"


def training_progress(metrics: Path, steps: int) -> str:
    """What the newest complete line of the metrics says."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    if not lines:
        return "starting"
    last = json.loads(lines[-1])
    return f"step {last['step']}/{steps}, loss {last['loss']:.3f}, margin {last['rewards/margins']:.3f}"


def demo_stages(settings: DemoSettings) -> list[Stage]:
    """Every stage before the plots, in order; each reads what the ones before it wrote under `settings.output`."""
    output = settings.output
    corpus = output / "documents.jsonl"

    def write_documents() -> None:
        write_corpus(corpus, settings.documents, settings.tokens, settings.seed)

    return [
        Stage(
            "documents", f"write {settings.documents} documents of {settings.tokens} tokens", function=write_documents
        ),
        Stage("before", "measure the base model", _measure(settings, BASE_MODEL, output / "before.json")),
        *_data_stages(settings, corpus),
        *_model_stages(settings),
        Stage("after", "measure the trained model", _measure(settings, output / "model", output / "after.json")),
    ]


def _data_stages(settings: DemoSettings, corpus: Path) -> list[Stage]:
    output, seed = settings.output, ("--seed", str(settings.seed))

    def data(tool: str, source: Path, *options: str, flag: str = "--input", model: bool = True) -> Command:
        target = output / "data" / ("shards" if tool == "pack" else tool)
        models = ("--model", str(BASE_MODEL)) if model else ()
        return (public_command("longpo"), "data", tool, flag, str(source), *models, "--output", str(target), *options)

    folder = output / "data"
    chunk_options = ("--chunk-tokens", str(settings.chunk_tokens), *_document_limits(settings.tokens), *seed)
    instruct_options = ("--pool-size", "1", "--max-new-tokens", "8", "--prompts", str(PROMPTS), *seed)
    respond_options = ("--max-new-tokens", "8", "--prompts", str(PROMPTS))
    return [
        Stage("chunk", "cut four chunks out of each document", data("chunk", corpus, *chunk_options)),
        Stage("instruct", "the base model writes a question", data("instruct", folder / "chunk", *instruct_options)),
        Stage("respond", "... and answers it twice", data("respond", folder / "instruct", *respond_options)),
        Stage("filter", "keep the turns that teach something", data("filter", folder / "respond", model=False)),
        Stage("score", "score both answers on the short chunk", data("score", folder / "filter", flag="--pairs")),
        Stage("pack", "pack token ids and scores into shards", data("pack", folder / "score", flag="--pairs")),
    ]


def _document_limits(tokens: int) -> Command:
    return (
        "--chunks-per-document",
        "4",
        "--min-document-tokens",
        str(tokens // 2),
        "--max-document-tokens",
        str(tokens),
    )


def _model_stages(settings: DemoSettings) -> list[Stage]:
    longpo, output = public_command("longpo"), settings.output
    start = str(output / "nemo_start")
    convert = (longpo, "convert", "import", "--model", str(BASE_MODEL), "--output", start, "--overwrite")
    train = (
        *(public_command("nemo"), "llm", "finetune", "--factory", "tiny_longpo", "--yes"),
        f"data.paths={output / 'data' / 'shards'}",
        f"data.seed={settings.seed}",
        f"resume.restore_config.path={start}",
        "trainer.devices=2",
        "trainer.strategy.context_parallel_size=2",
        f"trainer.max_steps={settings.steps}",
        f"model.objective.preference_weight={settings.preference_weight}",
        f"model.objective.beta={settings.beta}",
        f"optim.config.lr={settings.learning_rate}",
        "optim.lr_scheduler.warmup_ratio=0.1",
        f"log.log_dir={training_directory(output)}",
    )

    export = (longpo, "convert", "export", "--checkpoint", str(training_directory(output)), "--output")

    def progress() -> str:
        return training_progress(metrics_file(output), settings.steps)

    return [
        Stage("import", "convert the base model to NeMo", (*convert, "--rope-theta", str(settings.rope_theta))),
        Stage("train", "train with context parallelism over two processes", train, threads=1, progress=progress),
        Stage("export", "convert the trained model to Hugging Face", (*export, str(output / "model"), "--overwrite")),
    ]


def _measure(settings: DemoSettings, model: Path, output: Path) -> Command:
    lengths = tuple(map(str, settings.lengths))
    module = (sys.executable, "-m", "nemo_longpo.recipes.demo.evaluate", "--model", str(model), "--output", str(output))
    return (*module, "--samples", str(settings.samples), "--lengths", *lengths)
