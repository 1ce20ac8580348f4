"""Scoring tokenised records: the same numbers as for the text, and one sentence for each fault."""

import json
import re

import pytest
from support.published_pairs import text_pair
from support.tokenised_pairs import tokenised_record

from nemo_longpo.data_tools.model import load_chat


@pytest.fixture(scope="module")
def chat(model_dir):
    return load_chat(model_dir)


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def score(longpo, model, pairs, output, ref_context="short"):
    words = ("score", "--pairs", pairs, "--model", model, "--output", output, "--ref-context", ref_context)
    status, _, err = longpo(*words)
    assert status == 0, err
    return [json.loads(line) for line in (output / "part-00000.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ref_context", ["short", "long"])
def test_both_kinds_in_one_file(longpo, model_dir, chat, tmp_path, ref_context):
    """Texts and ids of the same documents: equal ids, and log-probs that differ only by the batch they stood in."""
    texts = [text_pair(index, turns) for index, turns in ((1, 2), (2, 3))]
    tokenised = [tokenised_record(chat, index, turns) | {"doc_id": f"{index}"} for index, turns in ((1, 2), (2, 3))]
    path = write_jsonl(tmp_path / "pairs.jsonl", [texts[0], tokenised[0], texts[1], tokenised[1]])
    scored = score(longpo, model_dir, path, tmp_path / "scored", ref_context)
    assert [record["doc_id"] for record in scored] == ["document-1", "1", "document-2", "2"]
    for text, record, given in zip(scored[::2], scored[1::2], tokenised, strict=True):
        assert {name: record[name] for name in given} == given
        for name in ("chosen", "rejected"):
            expected = [turn[f"ref_{name}_logps"] for turn in text["turns"]]
            found = record[f"ref_{name}_logps"]
            assert [len(turn) for turn in found] == [end - start for start, end in given[f"{name}_spans"]]
            for turn, values in zip(found, expected, strict=True):
                assert turn == pytest.approx(values, abs=1e-5)


def test_short_mode_scores_after_short_prompts(longpo, model_dir, chat, tmp_path):
    record = tokenised_record(chat, 1)
    other = record | {"short_prompts": [record["short_prompts"][1]] * 2}
    found = {}
    for ref_context in ("short", "long"):
        for name, given in (("record", record), ("other", other)):
            path = write_jsonl(tmp_path / f"{name}-{ref_context}.jsonl", [given])
            (scored,) = score(longpo, model_dir, path, tmp_path / f"{name}-{ref_context}", ref_context)
            found[name, ref_context] = scored["ref_chosen_logps"]
    assert found["record", "long"] == found["other", "long"]
    assert found["record", "short"][0] != found["other", "short"][0]
    assert found["record", "short"][1] == pytest.approx(found["other", "short"][1], abs=1e-5)


def changed(name, make):
    return lambda record: record | {name: make(record[name])}


def without(name):
    return lambda record: {key: value for key, value in record.items() if key != name}


FAULTS = {
    "field 'doc_id' must be text, not NoneType": changed("doc_id", lambda value: None),
    "field 'chosen_ids' is missing": without("chosen_ids"),
    "field 'short_prompts' is missing": without("short_prompts"),
    "field 'trunk_ids' must be a list of token ids": changed("trunk_ids", lambda ids: []),
    "field 'rejected_ids' must be a list of token ids": changed("rejected_ids", lambda ids: [*ids[:-1], True]),
    "field 'trunk_ids' must be a list of token ids ": changed("trunk_ids", lambda ids: [-1, *ids]),
    "field 'chosen_ids' holds ids outside the model's vocabulary of 493": changed(
        "chosen_ids", lambda ids: [ids[0], 493, *ids[2:]]
    ),
    r"field 'short_prompts\[1\]' holds ids outside": changed("short_prompts", lambda lists: [lists[0], [9999]]),
    r"field 'short_prompts\[0\]' must be a list of token ids": changed("short_prompts", lambda lists: [[], lists[1]]),
    "field 'short_prompts' has 1 turns, but chosen_spans has 2": changed("short_prompts", lambda lists: lists[:1]),
    "field 'rejected_spans' has 1 turns, but chosen_spans has 2": changed(
        "rejected_spans", lambda spans: [[0, spans[-1][1]]]
    ),
    "field 'chosen_spans' must start at 0 and end at": changed("chosen_spans", lambda spans: spans[:1]),
    "field 'rejected_spans' must be ordered, disjoint": changed("rejected_spans", lambda spans: spans[::-1]),
    "field 'nll_ignore_spans' must be ordered, disjoint": changed("nll_ignore_spans", lambda spans: [[0, 10**6]]),
    "field 'nll_ignore_spans' must be ordered, disjoint ": changed("nll_ignore_spans", lambda spans: [[0, 1.5]]),
    r"field 'chosen_spans\[0\]' must cover an answer and its end of turn": changed(
        "chosen_spans", lambda spans: [[0, spans[0][1] - 1], spans[1]]
    ),
    "field 'nll_ignore_spans' covers an answer": lambda record: (
        record | {"nll_ignore_spans": [[0, len(record["trunk_ids"]) + 1]]}
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_malformed_tokenised_records(longpo, model_dir, chat, tmp_path, message):
    records = [tokenised_record(chat, 1), FAULTS[message](tokenised_record(chat, 2))]
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    status, _, err = longpo("score", "--pairs", path, "--model", model_dir, "--output", tmp_path / "scored")
    assert status == 2
    assert re.search(f"pairs.jsonl, line 2: {message.strip()}", err), err
    assert "\n" not in err
    assert {entry.name for entry in tmp_path.iterdir()} == {"pairs.jsonl"}
