"""Wrong input gives exit status 2, one sentence with the place, and no partial output."""

import json
import re
import shutil

import pytest
from support.small_corpus import save_stopping_model
from support.tiny_models import save_tiny

from nemo_longpo.data_tools.engines.engine_options import EngineOptions

TURN = {"chunk": "A small boat.", "instruction": "Who?", "chosen": "The old clock", "rejected": "One letter"}
PAIR = {"doc_id": "a", "document": "A small boat. The river.", "turns": [TURN]}


def with_turn(**changes):
    turn = {key: value for key, value in (TURN | changes).items() if value is not None}
    return PAIR | {"doc_id": "b", "turns": [TURN, turn]}


@pytest.fixture
def outputs(tmp_path):
    """A function that checks that nothing was written, not even a hidden partial directory."""
    before = set(tmp_path.rglob("*"))
    return lambda: {path.name for path in set(tmp_path.rglob("*")) - before if path.name != "pairs.jsonl"}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("not json", "pairs.jsonl, line 2 is not readable JSON"),
        (json.dumps([1]), "pairs.jsonl, line 2 should hold a JSON object, not a list"),
        (PAIR | {"doc_id": None}, "line 2: field 'doc_id' must be text, not NoneType"),
        ({"doc_id": "b", "turns": [TURN]}, "line 2: field 'document' is missing"),
        (PAIR | {"document": " "}, "line 2: field 'document' is empty"),
        (PAIR | {"turns": []}, "line 2: field 'turns' is empty"),
        (PAIR | {"turns": "x"}, "line 2: field 'turns' must be a list, not str"),
        (PAIR | {"turns": ["x"]}, r"line 2: field 'turns\[0\]' must be an object"),
        (with_turn(instruction=None), r"line 2: field 'turns\[1\].instruction' is missing"),
        (with_turn(rejected=None), r"line 2: field 'turns\[1\].rejected' is missing"),
        (with_turn(chosen=7), r"line 2: field 'turns\[1\].chosen' must be text, not int"),
        (with_turn(chosen=" \n"), r"line 2: field 'turns\[1\].chosen' is empty; .*longpo data filter"),
        (with_turn(chosen_token_ids=[]), r"line 2: field 'turns\[1\].chosen' is empty"),
        (with_turn(chosen_token_ids=["x"]), r"line 2: field 'turns\[1\].chosen_token_ids' must be a list of token"),
        (with_turn(chosen_token_ids=[1 << 40]), r"'turns\[1\].chosen_token_ids' holds ids outside .* of 493"),
        (with_turn(chosen_token_ids=[493]), r"'turns\[1\].chosen_token_ids' holds ids outside .* of 493"),
        (with_turn(rejected_token_ids=[9, 2]), r"'turns\[1\].rejected_token_ids' ends with the end-of-turn token 2"),
    ],
)
def test_malformed_pairs(longpo, model_dir, tmp_path, outputs, second, message):
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(PAIR), second if isinstance(second, str) else json.dumps(second)]
    path.write_text("\n".join(lines) + "\n")
    status, _, err = longpo("score", "--pairs", path, "--model", model_dir, "--output", tmp_path / "scored")
    assert status == 2
    assert re.search(message, err), err
    assert "\n" not in err
    assert outputs() == set()


def test_filter_refuses_malformed_and_drops_empty(longpo, tmp_path):
    path = tmp_path / "pairs.jsonl"
    records = [
        with_turn(chosen=""),
        PAIR | {"turns": [TURN | {"chosen": "same", "rejected": " same"}]},
        PAIR | {"doc_id": "c", "turns": [TURN | {"chosen_finish_reason": "length"}]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    status, out, _ = longpo("filter", "--input", path, "--output", tmp_path / "filtered", "--json")
    assert status == 0
    assert json.loads(out)["report"] == {
        "documents_in": 3,
        "documents_out": 1,
        "documents_without_turns": 2,
        "dropped_empty": 1,
        "dropped_identical": 1,
        "dropped_truncated": 1,
        "turns_in": 4,
        "turns_out": 1,
    }
    kept = json.loads((tmp_path / "filtered" / "part-00000.jsonl").read_text())
    assert kept == PAIR | {"doc_id": "b"}
    path.write_text(json.dumps(with_turn(chunk=None)))
    status, _, err = longpo("filter", "--input", path, "--output", tmp_path / "again")
    assert (status, "turns[1].chunk" in err) == (2, True)
    assert not (tmp_path / "again").exists()


@pytest.fixture
def scored(longpo, model_dir, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR) + "\n")
    assert longpo("score", "--pairs", path, "--model", model_dir, "--output", tmp_path / "scored")[0] == 0
    return tmp_path / "scored"


def pack(longpo, scored, model, output):
    status, _, err = longpo("pack", "--pairs", scored, "--model", model, "--output", output)
    return status, err


def test_pack_refuses_another_model_and_another_tokenizer(longpo, scored, model_dir, tmp_path):
    other = save_stopping_model(tmp_path / "other", "mistral", seed=1)
    status, err = pack(longpo, scored, other, tmp_path / "shards")
    assert status == 2
    settings = json.loads((scored / "settings.json").read_text())["settings"]
    assert settings["model"]["weights_sha256"] in err
    assert "were scored with model" in err
    shutil.copytree(model_dir, tmp_path / "changed")
    tokenizer = json.loads((tmp_path / "changed" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (tmp_path / "changed" / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, err = pack(longpo, scored, tmp_path / "changed", tmp_path / "shards")
    assert status == 2
    assert f"were scored with tokenizer {settings['tokenizer_fingerprint']}" in err
    assert not (tmp_path / "shards").exists()


def test_pack_refuses_unscored_and_edited_pairs(longpo, scored, model_dir, tmp_path):
    status, err = pack(longpo, tmp_path / "pairs.jsonl", model_dir, tmp_path / "shards")
    assert (status, "score the pairs first" in err) == (2, True)
    part = scored / "part-00000.jsonl"
    record = json.loads(part.read_text())
    del record["turns"][0]["ref_rejected_logps"][0]
    part.write_text(json.dumps(record) + "\n")
    status, err = pack(longpo, scored, model_dir, tmp_path / "shards")
    assert status == 2
    assert "part-00000.jsonl, line 1" in err
    assert "'ref_rejected_logps' has" in err
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "scored"}


def test_changed_setting_is_refused_by_name(longpo, scored, model_dir, tmp_path):
    words = ("score", "--pairs", tmp_path / "pairs.jsonl", "--model", model_dir, "--output", scored)
    status, _, err = longpo(*words, "--ref-context", "long")
    assert status == 2
    assert 'settings.ref_context was "short", now "long"' in err
    assert longpo(*words)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("chunk", "--input", "nowhere", "--model", "MODEL", "--chunk-tokens", 64), "nowhere does not exist"),
        (("chunk", "--input", "CORPUS", "--model", "nowhere"), "nowhere is not a Hugging Face model directory"),
        (("chunk", "--input", "CORPUS", "--model", "MODEL", "--chunk-tokens", 0), "chunk_tokens 0 must be at least 1"),
        (("chunk", "--input", "CORPUS", "--model", "MODEL"), "chunk_tokens 32768 leaves no room.* 4096"),
        (("instruct", "--input", "CORPUS", "--model", "MODEL"), "holds no records"),
        (("respond", "--input", "nowhere", "--model", "MODEL"), "nowhere does not exist"),
        (("filter", "--input", "nowhere"), "nowhere does not exist"),
        (("pack", "--pairs", "nowhere", "--model", "MODEL"), "nowhere does not exist"),
    ],
)
def test_wrong_arguments(longpo, corpus, model_dir, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    replaced = [{"MODEL": model_dir, "CORPUS": corpus}.get(word, word) for word in words]
    status, _, err = longpo(*replaced, "--output", tmp_path / "output")
    assert status == 2
    assert re.search(message, err), err
    assert not (tmp_path / "output").exists()


def test_prompts_longer_than_the_context_are_refused(longpo, corpus, tmp_path):
    model = save_tiny(tmp_path / "model", max_position_embeddings=200)
    chunk = ("chunk", "--input", corpus, "--model", model, "--output", tmp_path / "chunks", "--chunk-tokens", 128)
    assert longpo(*chunk)[0] == 0
    words = ("instruct", "--input", tmp_path / "chunks", "--model", model, "--output", tmp_path / "output")
    status, _, err = longpo(*words)
    assert status == 2
    assert "exceed the model's context of 200" in err
    assert not (tmp_path / "output").exists()


def test_inspect_without_shards(longpo, tmp_path):
    status, _, err = longpo("inspect", tmp_path)
    assert (status, "holds no manifest.json" in err) == (2, True)


@pytest.mark.parametrize("stage", ["instruct", "respond", "filter", "score"])
def test_repeated_document_id_is_refused_early(longpo, model_dir, tmp_path, outputs, monkeypatch, stage):
    """Across the files of a directory, with both places; no engine is loaded for it."""
    monkeypatch.setattr(EngineOptions, "load", lambda *_: pytest.fail("the engine was loaded"))
    pairs = tmp_path / "pairs.jsonl"
    pairs.mkdir()
    (pairs / "a.jsonl").write_text("".join(json.dumps(PAIR | {"doc_id": name}) + "\n" for name in ("a", "same", "c")))
    (pairs / "b.jsonl").write_text("\n" + json.dumps(PAIR | {"doc_id": "same"}) + "\n")
    flag, model = "--pairs" if stage == "score" else "--input", () if stage == "filter" else ("--model", model_dir)
    status, _, err = longpo(stage, flag, pairs, *model, "--output", tmp_path / "output")
    assert status == 2
    first, second = pairs / "a.jsonl", pairs / "b.jsonl"
    assert err.startswith(f"{second}, line 2: document id 'same' was already used by {first}, line 2; give every")
    assert outputs() == {"a.jsonl", "b.jsonl"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": None}, "settings.json: field 'parts' is missing or of another kind; remove the directory"),
        ({"settings": []}, "settings.json: field 'settings' is missing or of another kind"),
        (
            {"history": {"respond": 3}},
            "settings.json: field 'history' holds something else than the settings of",
        ),
        ({"settings": {}}, "settings.json: field 'settings.engine' is missing or of another kind"),
    ],
)
def test_damaged_settings_of_a_stage(longpo, model_dir, tmp_path, change, message):
    pairs = tmp_path / "scored"
    pairs.mkdir()
    (pairs / "part-00000.jsonl").write_text(json.dumps(PAIR) + "\n")
    content = {"stage": "score", "parts": 1, "settings": {}, "input": {}, "history": {}} | change
    (pairs / "settings.json").write_text(json.dumps(content))
    status, _, err = longpo("pack", "--pairs", pairs, "--model", model_dir, "--output", tmp_path / "shards")
    assert (status, message in err) == (2, True), err
