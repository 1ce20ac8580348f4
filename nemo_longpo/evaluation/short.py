"""The short benchmarks, as lm-evaluation-harness has them, on local files in the columns of the published data sets.

Prompts, examples and scores are those of the harness's own tasks. The data directory holds, per data set and split, one
file (`.parquet`, `.jsonl`, also `.jsonl.gz`, `.jsonl.zst`, or `.json`):

    mmlu/test, mmlu/dev                     cais/mmlu, "all"
    arc_challenge/test, arc_challenge/train allenai/ai2_arc, "ARC-Challenge"
    hellaswag/validation, hellaswag/train   Rowan/hellaswag
    winogrande/validation, winogrande/train allenai/winogrande, "winogrande_xl"

The first split is tested. Examples come from the second, never from the first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from nemo_longpo import typed_fields
from nemo_longpo.errors import InputError
from nemo_longpo.typed_fields import Kind, Names

from . import data_files, questions
from .benchmarks import Benchmark, EvalTask, Preparation

_FOUR_CHOICES = Kind(
    "a list of four strings",
    lambda value: isinstance(value, list) and len(value) == 4 and all(isinstance(item, str) for item in value),
)
_ONE_OF_FOUR = Kind("0, 1, 2 or 3", lambda value: value in (0, 1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Mmlu:
    """A row of MMLU; `answer` counts the choices from 0."""

    question: str
    subject: str
    choices: Annotated[list[str], _FOUR_CHOICES]
    answer: Annotated[int, _ONE_OF_FOUR]


@dataclass(frozen=True, kw_only=True)
class ArcChoices:
    text: Names
    label: Names


@dataclass(frozen=True, kw_only=True)
class Arc:
    """A row of ARC; `answerKey` is one of the labels."""

    question: str
    choices: ArcChoices
    answerKey: str


@dataclass(frozen=True, kw_only=True)
class HellaSwag:
    """A row of HellaSwag; `label` counts the endings from 0. It is empty in the published test split."""

    ctx_a: str
    ctx_b: str
    activity_label: str
    endings: Annotated[list[str], _FOUR_CHOICES]
    label: Annotated[str, Kind("0, 1, 2 or 3", lambda value: str(value) in {"0", "1", "2", "3"})]


@dataclass(frozen=True, kw_only=True)
class Winogrande:
    """A row of Winogrande; `answer` is "1" or "2", and `_` in the sentence stands for the option."""

    sentence: Annotated[str, Kind("a sentence with _ in it", lambda value: isinstance(value, str) and "_" in value)]
    option1: str
    option2: str
    answer: Annotated[str, Kind('"1" or "2"', lambda value: value in ("1", "2"))]


# Benchmark -> (the harness's own files of its tasks, the columns of its data).
_TASKS: dict[str, tuple[str, type]] = {
    "mmlu": ("mmlu/default/mmlu_*.yaml", Mmlu),
    "arc_challenge": ("arc/arc_challenge.yaml", Arc),
    "hellaswag": ("hellaswag/hellaswag.yaml", HellaSwag),
    "winogrande": ("winogrande/default.yaml", Winogrande),
}


def build(benchmark: Benchmark, preparation: Preparation) -> list[EvalTask]:
    """Build the tasks of a short benchmark: one, or for MMLU one per subject.

    Raises InputError if a file or row is not as published, or if a split has too few rows.
    """
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks import _yaml_loader

    datasets.disable_progress_bars()
    pattern, columns = _TASKS[benchmark.name]
    directory = preparation.file(benchmark, benchmark.files[0])
    configs = [_yaml_loader.load_yaml(path) for path in sorted(Path(lm_eval.tasks.__file__).parent.glob(pattern))]
    tested, examples = _splits(configs[0])
    rows = {split: _rows(data_files.split_file(directory, split), columns) for split in (tested, examples)}
    tasks = []
    for config in configs:
        # A task of MMLU is one of the subjects that one file holds.
        subject = config["dataset_name"] if columns is Mmlu else None
        own = {split: [row for row in rows[split] if subject is None or row["subject"] == subject] for split in rows}
        for split, fewest in ((tested, 1), (examples, benchmark.num_fewshot + 1 - (columns is Mmlu))):
            if len(own[split]) < fewest:
                of_subject = f" of the subject {subject}" if subject else ""
                raise InputError(
                    f"{data_files.split_file(directory, split)} has {len(own[split])} rows{of_subject}, and "
                    f"{benchmark.name} needs {fewest} at least; {data_files.ADVICE}"
                )
        harness = {name: value for name, value in config.items() if name != "tag"}
        task = questions.harness_task(
            harness | {"num_fewshot": benchmark.num_fewshot},
            {split: datasets.Dataset.from_list(own[split]) for split in own},
        )
        tasks.append(EvalTask(benchmark=benchmark, task=task))
    return tasks


def _splits(config: dict[str, Any]) -> tuple[str, str]:
    """The split that a task of the harness tests, and the one that it takes examples from."""
    tested = config.get("test_split") or config["validation_split"]
    examples = config.get("fewshot_split") or config["training_split"]
    assert tested != examples, f"{config['task']} takes its examples from what it tests"
    return tested, examples


def _rows(path: Path, columns: type) -> list[dict[str, Any]]:
    """The rows of a file, as they are. Raises InputError with the first one that is not as published."""
    rows = []
    for where, row in data_files.rows(path):
        typed_fields.build(columns, row, where, data_files.ADVICE, exact=False)
        if columns is Arc and row["answerKey"] not in row["choices"]["label"]:
            raise InputError(f"{where}: field 'answerKey' should be a label of the choices; {data_files.ADVICE}")
        rows.append(row)
    return rows
