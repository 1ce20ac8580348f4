"""The check of `score`: right engines pass, faulty ones are refused before anything is written."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from support.small_corpus import save_stopping_model

from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.engines.hf_engine import TransformersEngine
from nemo_longpo.data_tools.settings import EngineSettings, ScoreSettings, TransformersSettings
from nemo_longpo.data_tools.stages.registry import StageCall
from nemo_longpo.data_tools.stages.score_check import (
    REPORT_NAME,
    Difference,
    EngineCheck,
    Scored,
    allowed_mean,
    compare,
)
from nemo_longpo.errors import InputError

TURN = {"chunk": "A small boat crosses.", "instruction": "Who?", "chosen": "The old clock " * 9, "rejected": "A letter"}
PAIRS = [{"doc_id": f"doc-{i}", "document": "The river.", "turns": [TURN] * (3 - i)} for i in range(3)]


class Faulty(TransformersEngine):
    """The engine with something wrong in its scores."""

    calls = 0

    def score(self, sequences, spans, tick):
        type(self).calls += 1
        return [[self.spoil(logps) for logps in found] for found in super().score(sequences, spans, tick)]

    def spoil(self, logps: np.ndarray) -> np.ndarray:
        return logps


class Scaled(Faulty):
    def spoil(self, logps):
        return logps * np.float32(1.01)


class Shifted(Faulty):
    def score(self, sequences: Sequence, spans: Sequence, tick):
        return super().score(sequences, [[(start - 1, end - 1) for start, end in row] for row in spans], tick)


class NotFinite(Faulty):
    def spoil(self, logps):
        return np.append(logps[:-1], np.float32("nan"))


class OtherBase(Faulty):
    """Ignores `--rope-theta`, as vLLM does with the wrong override."""

    def __init__(self, directory, common, own):
        super().__init__(directory, EngineSettings(dtype=common.dtype), own)


@pytest.fixture(scope="module", params=["mistral", pytest.param("qwen2", marks=pytest.mark.slow)])
def model(request, tmp_path_factory):
    return save_stopping_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture
def stage(tmp_path, model, monkeypatch):
    """A function that scores PAIRS, one document a part, with an engine of a given class."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))

    def run(kind, *, verify=None, **common):
        def load(self, model, *, writes_json):
            return kind(model, self.common, self.transformers)

        monkeypatch.setattr(EngineOptions, "load", load)
        inputs, values = (str(pairs),), {"part_size": 1, **common, **(verify or {})}
        return StageCall(stage="score", inputs=inputs, output=tmp_path / "scored", model_given=model, values=values)()

    return run


def report(tmp_path):
    return json.loads((tmp_path / "scored" / REPORT_NAME).read_text())


def test_float32_passes_and_reports(stage, tmp_path, capsys):
    assert stage(TransformersEngine)["documents_out"] == 3
    found = report(tmp_path)
    assert found["engine_dtype"] == "float32"
    assert found["huggingface_to_float32"] is None
    assert found["engine_to_float32"] == found["engine_to_huggingface"]
    assert found["engine_to_float32"]["max"] < 1e-4
    assert found["allowed_mean"] == 1e-3
    # The two shortest sequences of the first part: those of its short answers.
    assert [item["doc_id"] for item in found["sample"]] == ["doc-0", "doc-0"]
    assert found["responses"] == 2
    assert found["tokens"] == 2 * (len(logps_of(tmp_path, "rejected")))
    assert capsys.readouterr().err.count("differ from Hugging Face's in float32 by") == 1


def logps_of(tmp_path, name):
    return json.loads((tmp_path / "scored" / "part-00000.jsonl").read_text())["turns"][0][f"ref_{name}_logps"]


def test_bfloat16_is_compared_with_its_rounding(stage, tmp_path):
    stage(TransformersEngine, dtype="bfloat16", verify={"verify_samples": 4})
    found = report(tmp_path)
    rounding = found["huggingface_to_float32"]
    assert rounding["mean"] > 1e-4
    assert found["engine_to_float32"]["mean"] <= found["allowed_mean"]
    assert found["engine_to_huggingface"]["mean"] < rounding["mean"]
    assert found["allowed_mean"] == pytest.approx((2 + 4 / found["tokens"] ** 0.5) * rounding["mean"] + 1e-3)


@pytest.mark.parametrize(
    ("kind", "common"),
    [
        (Scaled, {}),
        (Shifted, {}),
        (Shifted, {"dtype": "bfloat16"}),
        (OtherBase, {"rope_theta": 100.0}),
        (OtherBase, {"rope_theta": 100.0, "dtype": "bfloat16"}),
    ],
)
def test_wrong_engine_is_refused_before_writing(stage, tmp_path, kind, common):
    with pytest.raises(InputError, match=r"tokens of doc-0, the engine's log-probs in .* on average is allowed"):
        stage(kind, **common)
    assert not (tmp_path / "scored").exists()


def test_not_finite_is_refused_without_samples(stage, tmp_path):
    with pytest.raises(InputError, match="document 'doc-0': the engine gives a log-prob that is not finite"):
        stage(NotFinite, verify={"verify_samples": 0})
    assert not (tmp_path / "scored").exists()


def test_settings_disable_or_widen_the_check(stage, tmp_path):
    stage(Scaled, verify={"verify_tolerance": 1.0})
    assert report(tmp_path)["engine_to_float32"]["mean"] > 1e-3
    # Neither is part of what was written: another value continues the same output.
    (tmp_path / "scored" / REPORT_NAME).unlink()
    (tmp_path / "scored" / "part-00002.jsonl").unlink()
    stage(Scaled, verify={"verify_samples": 0})
    assert not (tmp_path / "scored" / REPORT_NAME).exists()


def test_later_process_does_not_check(stage, tmp_path):
    stage(TransformersEngine)
    before = report(tmp_path)
    (tmp_path / "scored" / "part-00001.jsonl").unlink()
    stage(Scaled)
    assert report(tmp_path) == before


def test_lost_report_is_made_again(stage, tmp_path):
    stage(TransformersEngine)
    (tmp_path / "scored" / REPORT_NAME).unlink()
    (tmp_path / "scored" / "part-00001.jsonl").unlink()
    with pytest.raises(InputError, match="tokens of doc-1"):
        stage(Scaled)
    stage(TransformersEngine)
    assert report(tmp_path)["sample"][0]["doc_id"] == "doc-1"


def test_report_waits_for_first_part(model, tmp_path):
    """A directory with a report but without settings.json would be refused by the next run as not a stage's output."""
    common = EngineSettings()
    engine = TransformersEngine(model, common, TransformersSettings())
    sequence, spans = list(range(10, 30)), [(12, 15), (16, 20)]
    (logps,) = engine.score([sequence], [spans], lambda _: None)
    scored = [Scored("doc", sequence, spans, logps)]
    with EngineCheck(model, common, ScoreSettings(), tmp_path) as verification:
        verification.check(engine, scored)
        verification.check(engine, scored)
    assert list(tmp_path.iterdir()) == []
    with EngineCheck(model, common, ScoreSettings(), tmp_path) as verification:
        verification.check(engine, scored)
        (tmp_path / "settings.json").touch()
        verification.check(engine, scored)
        assert json.loads((tmp_path / REPORT_NAME).read_text())["responses"] == 2


def test_unknown_device_is_refused(stage):
    with pytest.raises(InputError, match="verify_device 'abacus' cannot be used"):
        stage(TransformersEngine, verify={"verify_device": "abacus"})


def test_compare_counts_tokens_and_responses():
    found = [np.array([-1.0, -2.0], np.float32), np.array([-3.0], np.float32)]
    expected = [np.array([-1.5, -1.0], np.float32), np.array([-3.0], np.float32)]
    assert compare(found, expected) == Difference(mean=0.5, max=1.0, sum_mean=0.25, sum_max=0.5)
    assert not compare([np.array([np.nan], np.float32)], [np.zeros(1, np.float32)]).mean <= 1


def test_allowed_mean():
    own = Difference(mean=0.02, max=0.1, sum_mean=0.1, sum_max=0.2)
    assert allowed_mean(None, 50, 1e-3) == 1e-3
    assert allowed_mean(own, 400, 1e-3) == pytest.approx(2.2 * 0.02 + 1e-3)
    assert allowed_mean(own, 4, 1e-3) == pytest.approx(4 * 0.02 + 1e-3)


def test_equal_roundings_pass():
    """Heavy-tailed errors of the same distribution on different tokens: hardly ever refused, also over few tokens."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        engine, own = (np.abs(rng.standard_t(3, 16) * 0.02).mean() for _ in range(2))
        refused += engine > allowed_mean(Difference(own, 0, 0, 0), 16, 1e-3)
    assert refused < 20


def test_long_sequences_wait_for_a_shorter_part(stage, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_longpo.data_tools.stages.score_check.LONGEST", 10)
    stage(Scaled)
    assert not (tmp_path / "scored" / REPORT_NAME).exists()
    assert (tmp_path / "scored" / "part-00002.jsonl").exists()
