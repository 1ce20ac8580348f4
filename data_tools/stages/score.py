"""Stage 5: per-token log-probs of both answers under the reference model.

"short" (LongPO): each answer after its own chunk and instruction. "long" (the DPO baseline): each answer at its place
in the whole conversation over the document. The scored ids are those of the long training sequence in both cases.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nemo_longpo.errors import InputError

from ..encoded import EncodedPair, PairEncoder, check_row
from ..model import load_chat, tokenizer_identity
from ..pairs import BRANCHES
from ..runner import PartResult, Row, Tick, read_stage_settings
from ..settings import EngineSettings, ScoreSettings, TemplateKwargs
from . import model_stage, registry, score_check


def run_score(call: registry.StageCall) -> registry.Report:
    """Add token ids and reference log-probs (one per response token, end of turn included) to every turn.

    The input is text pairs or tokenised records. Hand-made ones are all checked before the first is scored. Raises
    InputError if one is malformed or too long, or if the engine fails its check.
    """
    settings = call.settings(ScoreSettings)
    _check_imported(call.input, call.model)
    with score_check.EngineCheck(call.model, call.settings(EngineSettings), settings, call.output) as engine_check:
        work = partial(_score_rows, settings=settings, engine_check=engine_check)
        return model_stage.run_with_model(call, settings, work, check=check_row)


@dataclass(frozen=True)
class _Request:
    """Ids to score, and the spans whose log-probs are wanted: turns of one branch, in their order."""

    branch: str
    doc_id: str
    sequence: list[int]
    spans: list[tuple[int, int]]


def _score_rows(
    rows: list[Row],
    tick: Tick,
    loaded: model_stage.LoadedModel,
    settings: ScoreSettings,
    engine_check: score_check.EngineCheck,
) -> PartResult:
    encoder = PairEncoder(loaded.chat, loaded.prompts, loaded.engine.vocab_size)
    pairs = [encoder.encode(row) for row in rows]
    of_pairs = [_short_requests(pair) if settings.ref_context == "short" else _long_requests(pair) for pair in pairs]
    for made, row in zip(of_pairs, rows, strict=True):
        _check_lengths(made, loaded, settings, row.where)
    requests = [request for made in of_pairs for request in made]
    scores = loaded.engine.score([item.sequence for item in requests], [item.spans for item in requests], tick)
    engine_check.check(
        loaded.engine,
        [
            score_check.Scored(item.doc_id, item.sequence, item.spans, logps)
            for item, logps in zip(requests, scores, strict=True)
        ],
    )
    left = iter(scores)
    records = []
    for pair, made in zip(pairs, of_pairs, strict=True):
        turns: dict[str, list[list[float]]] = {name: [] for name in BRANCHES}
        for request in made:
            # The shortest decimals that read back as the same float32 values.
            turns[request.branch] += [[float(str(value)) for value in logps] for logps in next(left)]
        records.append(pair.scored(turns))
    counts = Counter(documents_in=len(rows), documents_out=len(rows), turns_out=sum(pair.turns for pair in pairs))
    counts["spelled_ends_left_out"] = sum(pair.spelled_ends for pair in pairs)
    return PartResult(records, counts)


def _short_requests(pair: EncodedPair) -> list[_Request]:
    """Return one request per answer."""
    prompts = pair.short_prompts()
    return [
        _Request(name, pair.doc_id, [*prompt, *response], [(len(prompt), len(prompt) + len(response))])
        for name in BRANCHES
        for prompt, response in zip(prompts, pair.responses(name), strict=True)
    ]


def _long_requests(pair: EncodedPair) -> list[_Request]:
    """Return one request per branch."""
    long = pair.long()
    trunk = len(long.trunk_ids)
    branches = {
        "chosen": (long.chosen_ids, long.chosen_spans),
        "rejected": (long.rejected_ids, long.rejected_spans),
    }
    return [
        _Request(name, pair.doc_id, long.trunk_ids + ids, [(start + trunk, end + trunk) for start, end in spans])
        for name, (ids, spans) in branches.items()
    ]


def _check_lengths(
    requests: list[_Request], loaded: model_stage.LoadedModel, settings: ScoreSettings, where: str
) -> None:
    for request in requests:
        if settings.ref_context == "short":
            loaded.check_short(request.sequence, 0, where)
        loaded.check_long(len(request.sequence), 0, where)


def _check_imported(pairs: Path, model: Path) -> None:
    """Raises InputError if the pairs were imported with another tokenizer: their ids would mean something else."""
    stage = read_stage_settings(pairs)
    if stage is None or stage["stage"] != "import-hf":
        return
    told = TemplateKwargs().or_recorded({"import-hf": stage["settings"]})
    found = tokenizer_identity(load_chat(model, template_kwargs=told))
    imported = stage["settings"].get("tokenizer_fingerprint")
    if imported != found["tokenizer_fingerprint"]:
        raise InputError(
            f"{pairs} was imported with tokenizer {imported}, but {model} has {found['tokenizer_fingerprint']}; give "
            "the same model, or import the dataset again"
        )
