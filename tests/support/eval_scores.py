"""Scores of models that were never run: what a model scored on each task, as the evaluation hands it to its report."""

from collections.abc import Mapping, Sequence

from nemo_longpo.evaluation.benchmarks import Benchmark, ModelScores, Sample, TaskScores
from nemo_longpo.evaluation.suites import BENCHMARKS

IDENTITY = {"model": {"weights_sha256": "ab" * 32, "dtype": "bfloat16"}, "engine": {"engine": "transformers"}}
SETTINGS = {"suite": ["paper"], "seed": 0, "system_prompt": None}
FACTS = Benchmark(name="facts", title="facts", ability="long", build="", metric="string_match")
RATED = Benchmark(name="rated", title="Rated", ability="chat", build="", metric="rating", column="MT-Bench", scale=10.0)

Scores = Mapping[tuple[str, int | None], Sequence[float] | Mapping[str, float]]


def model_scores(label: str, scores: Scores, **changes: int) -> ModelScores:
    """Scores by (benchmark, length), each a list (of questions q0, q1, ...) or by id; `changes` go to every task."""
    return ModelScores(
        label=label,
        identity=IDENTITY,
        max_length=131072,
        tasks=tuple(_task(name, length, own, changes) for (name, length), own in scores.items()),
    )


def row(name: str) -> Benchmark:
    return {"facts": FACTS, "rated": RATED}.get(name) or BENCHMARKS[name]


def _task(
    name: str, length: int | None, scores: Sequence[float] | Mapping[str, float], changes: Mapping[str, int]
) -> TaskScores:
    own = row(name)
    by_id = scores if isinstance(scores, Mapping) else {f"q{place}": value for place, value in enumerate(scores)}
    return TaskScores(
        benchmark=name,
        length=length,
        metric=own.metric,
        ability=own.ability,
        title=own.title,
        column=own.column,
        scale=own.scale,
        samples=tuple(
            Sample(id=key, score=value, prompt_hash=f"hash of {key}", answer=f"answer {value:g}", expected=["right"])
            for key, value in by_id.items()
        ),
        **changes,  # type: ignore[arg-type]
    )
