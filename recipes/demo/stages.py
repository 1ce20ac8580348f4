"""The demo as a list of public commands, from documents to a trained and exported model."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo.checkpoints import run_directory
from nemo_longpo.errors import InputError
from nemo_longpo.steps import Step

from .corpus import write_corpus

DEMO_DIR = Path(__file__).resolve().parent
BASE_MODEL = DEMO_DIR / "model"
PROMPTS = DEMO_DIR / "prompts.json"
RULER_WORDS = DEMO_DIR / "ruler.json"
EVALUATED = "ruler_niah_multikey_1"
BASE_LENGTH = 128  # up to here the base model answers every question
SHORT_LENGTHS = (64, 96, BASE_LENGTH)


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of the demo; the defaults reach the goal of 90 % within minutes on two cores."""

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
        """Document lengths to measure, in tokens: short ones, the trained one, and some between."""
        return (*SHORT_LENGTHS, *sorted({n for n in (256, 512) if n < self.tokens} | {self.tokens}))


# The demo runs on the CPU, even on a machine with a GPU, and needs no network.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # in each of several processes


def public_command(name: str) -> str:
    """Return the path of a console script of this environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise InputError(
            f"{path} does not exist; install nemo_longpo with its [nemo,demo] extras into this environment."
        )
    return str(path)


def metrics_file(output: Path) -> Path:
    """Return the file to which the training writes one line of metrics per step."""
    return run_directory.metrics_file(training_directory(output))


def training_directory(output: Path) -> Path:
    """Return the run's directory, which is the input of the export."""
    return output / "training"


def evaluation_directory(output: Path) -> Path:
    """Where `longpo eval` writes its answers and results."""
    return output / "evaluation"


def training_progress(metrics: Path, steps: int) -> str:
    """Return a line of progress from the newest complete line of the metrics."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    if not lines:
        return "starting"
    last = json.loads(lines[-1])
    return f"step {last['step']}/{steps}, loss {last['loss']:.3f}, margin {last['rewards/margins']:.3f}"


def demo_steps(settings: DemoSettings) -> list[Step]:
    """Return all steps before the plots, in order; each reads the output of earlier ones under `settings.output`."""
    output = settings.output
    corpus = output / "documents.jsonl"
    return [
        Step(
            name="documents",
            title=f"write {settings.documents} documents of {settings.tokens} tokens",
            function=lambda: write_corpus(corpus, settings.documents, settings.tokens, settings.seed),
            outputs=(corpus,),
            settings=_chosen(settings, "documents", "tokens", "seed"),
        ),
        *_data_steps(settings, corpus),
        *_model_steps(settings),
        _evaluate(settings),
    ]


def _chosen(settings: DemoSettings, *names: str) -> dict[str, object]:
    return {name: getattr(settings, name) for name in names}


def _data_steps(settings: DemoSettings, corpus: Path) -> list[Step]:
    folder, tokens = settings.output / "data", settings.tokens
    seed, prompts = ("--seed", str(settings.seed)), ("--prompts", str(PROMPTS))
    limits = ("--min-document-tokens", str(tokens // 2), "--max-document-tokens", str(tokens))
    chunks = ("--chunk-tokens", str(settings.chunk_tokens), "--chunks-per-document", "4")

    def data(name: str, title: str, source: Path, *options: str, flag: str = "--input", decided_by: str = "") -> Step:
        target = folder / ("shards" if name == "pack" else name)
        model = ("--model", str(BASE_MODEL)) if name != "filter" else ()
        command = (public_command("longpo"), "data", name, flag, str(source), *model, "--output", str(target), *options)
        return Step(
            name=name,
            title=title,
            command=command,
            inputs=(source,),
            outputs=(target,),
            settings=_chosen(settings, *decided_by.split()),
            env=_ENVIRONMENT,
        )

    return [
        data(
            "chunk",
            "cut four chunks out of each document",
            corpus,
            *(*chunks, *limits, *seed),
            decided_by="chunk_tokens tokens seed",
        ),
        data(
            "instruct",
            "the base model writes a question",
            folder / "chunk",
            *("--pool-size", "1", "--max-new-tokens", "8", *prompts, *seed),
            decided_by="seed",
        ),
        data("respond", "... and answers it twice", folder / "instruct", "--max-new-tokens", "8", *prompts),
        data("filter", "keep the turns that teach something", folder / "respond"),
        data("score", "score both answers on the short chunk", folder / "filter", flag="--pairs"),
        data("pack", "pack token ids and scores into shards", folder / "score", flag="--pairs"),
    ]


def _model_steps(settings: DemoSettings) -> list[Step]:
    longpo, output = public_command("longpo"), settings.output
    start, shards, training, model = (
        output / "nemo_start",
        output / "data" / "shards",
        training_directory(output),
        output / "model",
    )
    train = (
        *(public_command("nemo"), "llm", "finetune", "--factory", "tiny_longpo", "--yes"),
        f"data.paths={shards}",
        f"data.seed={settings.seed}",
        f"resume.restore_config.path={start}",
        "trainer.devices=2",
        "trainer.strategy.context_parallel_size=2",
        f"trainer.max_steps={settings.steps}",
        f"model.objective.preference_weight={settings.preference_weight}",
        f"model.objective.beta={settings.beta}",
        f"optim.config.lr={settings.learning_rate}",
        "optim.lr_scheduler.warmup_ratio=0.1",
        f"log.log_dir={training}",
    )
    convert = (longpo, "convert", "import", "--model", str(BASE_MODEL), "--output", str(start), "--overwrite")
    export = (longpo, "convert", "export", "--checkpoint", str(training), "--output", str(model), "--overwrite")
    return [
        Step(
            name="import",
            title="convert the base model to NeMo",
            command=(*convert, "--rope-theta", str(settings.rope_theta)),
            outputs=(start,),
            settings=_chosen(settings, "rope_theta"),
            env=_ENVIRONMENT,
        ),
        Step(
            name="train",
            title="train with context parallelism over two processes",
            command=train,
            inputs=(shards, start),
            outputs=(training,),
            settings=_chosen(settings, "steps", "learning_rate", "preference_weight", "beta", "seed"),
            env=_ENVIRONMENT | _ONE_THREAD,
            progress=lambda: training_progress(metrics_file(output), settings.steps),
        ),
        Step(
            name="export",
            title="convert the trained model to Hugging Face",
            command=export,
            inputs=(training,),
            outputs=(model,),
            env=_ENVIRONMENT,
        ),
    ]


def _evaluate(settings: DemoSettings) -> Step:
    """The questions that the demo's documents answer are RULER's task of several keys, in the words of its model."""
    model, evaluation = settings.output / "model", evaluation_directory(settings.output)
    command = (public_command("longpo"), "eval", f"before={BASE_MODEL}", f"after={model}", "--suite", EVALUATED)
    lengths = ("--lengths", *map(str, settings.lengths), "--samples", str(settings.samples))
    return Step(
        name="evaluate",
        title="ask both models about documents of every length",
        command=(*command, *lengths, "--wording", str(RULER_WORDS), "--output", str(evaluation)),
        inputs=(model,),
        outputs=(evaluation,),
        settings=_chosen(settings, "samples", "tokens"),
        env=_ENVIRONMENT,
    )
