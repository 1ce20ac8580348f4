"""Packing text pairs and tokenised records, and the fields of `score` that it needs."""

import json

import pytest
from support.published_pairs import text_pair
from support.tokenised_pairs import tokenised_record

from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.shards.reader import ShardReader


@pytest.fixture
def scored(longpo, model_dir, tmp_path):
    """One document as text, one as ids."""
    records = [text_pair(1, 2), tokenised_record(load_chat(model_dir), 2)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert longpo("score", "--pairs", path, "--model", model_dir, "--output", tmp_path / "scored")[0] == 0
    return tmp_path / "scored"


def pack(longpo, model_dir, scored):
    words = ("pack", "--pairs", scored, "--model", model_dir, "--output", scored.parent / "shards")
    status, _, err = longpo(*words)
    return status, err


def test_both_kinds_in_one_shard(longpo, model_dir, scored):
    assert pack(longpo, model_dir, scored)[0] == 0
    reader = ShardReader(scored.parent / "shards")
    reader.verify()
    text, tokenised = [json.loads(line) for line in (scored / "part-00000.jsonl").read_text().splitlines()]
    assert [record.doc_id for record in reader] == ["document-1", "document-2"]
    for name in ("trunk_ids", "chosen_ids", "rejected_ids", "chosen_spans", "rejected_spans", "nll_ignore_spans"):
        assert getattr(reader[1], name).tolist() == tokenised[name]
    for name in ("chosen", "rejected"):
        for record, expected in (
            (reader[0], [turn[f"ref_{name}_logps"] for turn in text["turns"]]),
            (reader[1], tokenised[f"ref_{name}_logps"]),
        ):
            found = [turn.tolist() for turn in getattr(record, f"ref_{name}_logps")]
            assert found == [pytest.approx(turn, rel=1e-6) for turn in expected]
    chat = load_chat(model_dir)
    asked = [chat.prompt(f"{turn['chunk']}\n\n{turn['instruction']}") for turn in text["turns"]]
    for record, expected in zip(reader, (asked, tokenised["short_prompts"]), strict=True):
        assert [ids.tolist() for ids in record.short_prompt_ids] == expected


def test_short_prompts_are_kept_beside_long_references(longpo, model_dir, tmp_path):
    pair = text_pair(1, 2)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    words = ("--pairs", tmp_path / "pairs.jsonl", "--model", model_dir, "--ref-context", "long")
    assert longpo("score", *words, "--output", tmp_path / "scored")[0] == 0
    assert pack(longpo, model_dir, tmp_path / "scored")[0] == 0
    chat, (record,) = load_chat(model_dir), ShardReader(tmp_path / "shards")
    for ids, turn in zip(record.short_prompt_ids, pair["turns"], strict=True):
        assert ids.tolist() == chat.prompt(f"{turn['chunk']}\n\n{turn['instruction']}")


@pytest.mark.parametrize("ask", ["{document}\n\n{instruction}", "{instruction} ({instruction})\n{document}\nAnswer."])
def test_shards_record_chunk_spans(longpo, model_dir, tmp_path, ask):
    pair = text_pair(3, 3)
    foreign = "Somebody wrote this chunk without the document."
    pair["turns"][1]["chunk"] = foreign
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "prompts.json").write_text(json.dumps({"ask": ask}))
    words = ("--pairs", tmp_path / "pairs.jsonl", "--model", model_dir, "--prompts", tmp_path / "prompts.json")
    status, _, err = longpo("score", *words, "--output", tmp_path / "scored")
    assert status == 0, err
    assert pack(longpo, model_dir, tmp_path / "scored")[0] == 0
    reader = ShardReader(tmp_path / "shards")
    reader.verify()
    tokenizer = load_chat(model_dir).tokenizer
    texts = [tokenizer.decode(reader[0].trunk_ids[start:end]) for start, end in reader[0].chunk_spans]
    assert [len(text) - len(turn["chunk"]) for text, turn in zip(texts, pair["turns"], strict=True)] == [
        pytest.approx(0, abs=8),
        -len(foreign),
        pytest.approx(0, abs=8),
    ]
    assert all(turn["chunk"] in text for text, turn in zip(texts[::2], pair["turns"][::2], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("ref_chosen_logps"), "line 2: field 'ref_chosen_logps' is missing"),
        (lambda record: record["ref_chosen_logps"].pop(), "'ref_chosen_logps' has 1 turns, but there are 2"),
        (lambda record: record["ref_rejected_logps"][1].pop(), "'ref_rejected_logps' has"),
        (lambda record: record["ref_rejected_logps"][1].append("x"), "'ref_rejected_logps[1]' must be finite numbers"),
        (lambda record: record["ref_rejected_logps"].insert(0, 1.0), "'ref_rejected_logps[0]' must be a list"),
    ],
)
def test_edited_log_probs(longpo, model_dir, scored, change, message):
    part = scored / "part-00000.jsonl"
    text, tokenised = [json.loads(line) for line in part.read_text().splitlines()]
    change(tokenised)
    part.write_text(json.dumps(text) + "\n" + json.dumps(tokenised) + "\n")
    status, err = pack(longpo, model_dir, scored)
    assert (status, message in err, "\n" in err) == (2, True, False), err
    assert not (scored.parent / "shards").exists()
