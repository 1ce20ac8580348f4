"""Models as the evaluation opens them, for tests of single parts."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

from nemo_longpo.data_tools.engines.engine import Engine
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.evaluation import models
from nemo_longpo.evaluation.benchmarks import Preparation
from nemo_longpo.evaluation.language_model import Answers, EngineLM

DAY = date(2026, 7, 1)


def open_one(directory: Path, *, chat_template: bool = True) -> models.EvalModel:
    (model,) = models.open_models(
        [str(directory)], EngineOptions(), day=DAY, chat_template=chat_template, max_length=None
    )
    return model


def engine_lm(model: models.EvalModel, answers: Path, load: Callable[[], Engine] | None = None) -> EngineLM:
    kept = Answers(answers, model.identity)
    return EngineLM(model.tokenizer, model.stop_ids, kept, load or model.load_engine, lambda _: None, DAY)


def preparation(model: models.EvalModel, data: Path | None, **changed: object) -> Preparation:
    """For questions in plain text."""
    settings = {
        "data": data,
        "tokenizer": model.tokenizer,
        "count_tokens": lambda prompt, prefix: len(
            model.tokenizer(f"{prompt} {prefix}" if prefix else prompt).input_ids
        ),
        "max_length": model.max_length,
        "seed": 0,
        "questions": Path("unused"),
    }
    return Preparation(**(settings | changed))
