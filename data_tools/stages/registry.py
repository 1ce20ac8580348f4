"""The table of data stages. `longpo data STAGE`, the file of `longpo data run` and its pipeline follow from its rows.

A new stage is a row here and a file with the function that the row names. That function is imported when the stage
runs, so that `--help` is instant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from .. import settings
from ..options import AnySettings, Settings, setting_words, settings_from

Report = dict[str, int]
"""The counts of a finished stage; empty while some part of its output is missing."""

_WITH_MODEL = (settings.WorkShare, settings.TemplateSettings, settings.TemplateKwargs, *settings.ENGINE_SETTINGS)
_ON_CPU = (settings.CpuWorkShare, settings.TemplateKwargs)


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A row of the table. `run` names a function from a StageCall to a Report, as "module:function".

    `follows` names the stages whose output it reads; a stage without any reads outside data. `folder` is the name of
    its output in a run of all stages, by default the stage's name. Without `needs_model`, `--model` is optional.
    """

    name: str
    summary: str
    example: str
    settings: tuple[type[Settings], ...]
    run: str
    input_help: str
    follows: tuple[str, ...] = ()
    folder: str = ""
    input_flag: str = "--input"
    input_word: str = "PATH"
    many_inputs: bool = False
    needs_model: bool = True
    model_help: str = "Hugging Face model directory"
    takes_prompts: bool = False

    def setting_names(self) -> list[str]:
        return [item.name for kind in self.settings for item in fields(kind)]  # type: ignore[arg-type]  # dataclasses


_ROWS = (
    StageSpec(
        name="chunk",
        summary="cut documents into chunks that fit the model",
        example="longpo data chunk --input books/ --model MODEL --output work/chunks --chunk-tokens 8192",
        settings=(settings.ChunkSettings, *_ON_CPU),
        run="nemo_longpo.data_tools.stages.chunk:run_chunk",
        input_help="plain text or source code (.txt, .md, .rst, .tex, .py, ...), .jsonl, .jsonl.gz, .jsonl.zst, "
        ".parquet, datasets saved to disk, directories of all these, or hf:OWNER/NAME[:SPLIT]",
        many_inputs=True,
    ),
    StageSpec(
        name="instruct",
        summary="let the model write instructions about each chunk",
        example="longpo data instruct --input work/chunks --model MODEL --output work/instructed",
        settings=(settings.InstructSettings, *_WITH_MODEL),
        run="nemo_longpo.data_tools.stages.instruct:run_instruct",
        input_help="output of `longpo data chunk`",
        follows=("chunk",),
        takes_prompts=True,
    ),
    StageSpec(
        name="respond",
        summary="answer with the chunk and with the whole document",
        example="longpo data respond --input work/instructed --model MODEL --output work/responded",
        settings=(settings.RespondSettings, *_WITH_MODEL),
        run="nemo_longpo.data_tools.stages.respond:run_respond",
        input_help="output of `longpo data instruct`",
        follows=("instruct",),
        takes_prompts=True,
    ),
    StageSpec(
        name="filter",
        summary="leave out turns that cannot teach anything",
        example="longpo data filter --input work/responded --output work/pairs",
        settings=(settings.FilterSettings, *_ON_CPU),
        run="nemo_longpo.data_tools.stages.filter:run_filter",
        input_help="output of `longpo data respond`, or pairs of your own",
        follows=("respond",),
        needs_model=False,
        model_help="whose special tokens no answer of your own pairs may hold",
    ),
    StageSpec(
        name="import-hf",
        summary="take over a published dataset of tokenised pairs",
        example="longpo data import-hf --input DATASET --model MODEL --output work/pairs",
        settings=(settings.ImportSettings, *_ON_CPU),
        run="nemo_longpo.data_tools.stages.import_hf:run_import_hf",
        input_help="saved dataset, Parquet, JSONL or hf:OWNER/NAME[:SPLIT]",
        input_word="DATASET",
        many_inputs=True,
    ),
    StageSpec(
        name="score",
        summary="store the reference model's log-probs of both answers",
        example="longpo data score --pairs PAIRS.jsonl --model MODEL --output work/scored",
        settings=(settings.ScoreSettings, *_WITH_MODEL),
        run="nemo_longpo.data_tools.stages.score:run_score",
        input_help="output of `longpo data filter` or `import-hf`, or pairs of your own",
        follows=("filter", "import-hf"),
        input_flag="--pairs",
        takes_prompts=True,
    ),
    StageSpec(
        name="pack",
        summary="write shards for training",
        example="longpo data pack --pairs work/scored --model MODEL --output shards",
        settings=(settings.PackSettings,),
        run="nemo_longpo.data_tools.stages.pack:run_pack",
        input_help="output of `longpo data score`",
        follows=("score",),
        folder="shards",
        input_flag="--pairs",
    ),
)
STAGES = {row.name: row for row in _ROWS}


@dataclass(frozen=True, kw_only=True)
class StageCall:
    """One stage with its arguments, from a command line or from the file of a run. Call it to run the stage.

    `values` are settings by name; missing ones have their defaults. `prompts` names a file; by default the wording is
    the one that the input was made with, or the built-in one.
    """

    stage: str
    inputs: tuple[str, ...]
    output: Path
    model_given: Path | None = None
    prompts: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input(self) -> Path:
        """The only input of a stage."""
        (only,) = self.inputs
        return Path(only)

    @property
    def model(self) -> Path:
        """The model directory of a stage that needs one."""
        assert self.model_given is not None
        return self.model_given

    def settings(self, kind: type[AnySettings]) -> AnySettings:
        """Return these settings. Raises InputError if a value has the wrong kind or range."""
        return settings_from(kind, self.values)

    def __call__(self) -> Report:
        """Run the stage, or only check it with `dry_run`. Raises InputError if the input or a setting is wrong."""
        return resolve_name(STAGES[self.stage].run)(self)

    def words(self) -> list[str]:
        """Return the arguments of `longpo` that run this call in one process."""
        words = ["data", self.stage, STAGES[self.stage].input_flag, *self.inputs]
        words += ["--model", str(self.model_given)] if self.model_given is not None else []
        words += ["--prompts", self.prompts] if self.prompts is not None else []
        words += ["--output", str(self.output)]
        return words + [word for name, value in self.values.items() for word in setting_words(name, value)]
