"""Published tokenised datasets: the same shards as from the text, with and without each fault."""

import gzip
import json
import re
from copy import deepcopy

import datasets
import numpy as np
import pytest
from published import IGNORED, labelled_spans, padded, published_row, text_pair
from small_corpus import save_stopping_model
from tiny import save_tiny

from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.shards.reader import ShardReader

STYLES = {"mistral-v0.2": "mistral", "qwen2.5": "qwen2"}


@pytest.fixture(scope="module", params=STYLES)
def model(request, tmp_path_factory):
    return save_stopping_model(tmp_path_factory.mktemp("model"), STYLES[request.param], request.param)


@pytest.fixture
def chat(model):
    return load_chat(model)


@pytest.fixture
def pad(chat):
    tokenizer = chat.tokenizer
    return tokenizer.unk_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def import_rows(longpo, model, rows, tmp_path, *words):
    """The records and the report."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "imported"
    status, out, err = longpo("import-hf", "--input", path, "--model", model, "--output", output, "--json", *words)
    assert status == 0, err
    parts = sorted(output.glob("part-*"))
    records = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    return records, json.loads(out)["report"]


def make_shards(longpo, model, pairs, work, ref_context):
    """Two documents a part in every case: log-probs depend in their last digits on what is computed together."""
    for words in (("score", "--ref-context", ref_context, "--part-size", 2), ("pack",)):
        output = work / words[0]
        status, _, err = longpo(*words, "--pairs", pairs, "--model", model, "--output", output)
        assert status == 0, err
        pairs = output
    return ShardReader(pairs)


@pytest.mark.parametrize("ref_context", ["short", "long"])
def test_same_shards_as_from_the_text(longpo, model, chat, pad, tmp_path, ref_context):
    pairs = [text_pair(index, turns) for index, turns in enumerate((1, 3, 2, 4))]
    direct = make_shards(longpo, model, write_jsonl(tmp_path / "pairs.jsonl", pairs), tmp_path / "direct", ref_context)
    rows = [padded(published_row(chat, pair), pad, masks=bool(index % 2)) for index, pair in enumerate(pairs)]
    datasets.Dataset.from_list(rows[:2]).to_parquet(tmp_path / "rows.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows[2:])}).save_to_disk(tmp_path / "rows")
    words = ("import-hf", "--input", tmp_path / "rows.parquet", tmp_path / "rows", "--model", model)
    status, _, err = longpo(*words, "--output", tmp_path / "imported")
    assert status == 0, err
    found = make_shards(longpo, model, tmp_path / "imported", tmp_path / "indirect", ref_context)
    assert len(found) == len(direct) == 4
    for record, expected in zip(found, direct, strict=True):
        for name, value in vars(expected).items():
            if isinstance(value, tuple):
                assert [turn.tolist() for turn in getattr(record, name)] == [turn.tolist() for turn in value], name
            else:
                np.testing.assert_array_equal(getattr(record, name), value, err_msg=name)
    assert found.manifest.generation["import-hf"]["split"] == "train"


def every_way_in(rows, directory):
    datasets.Dataset.from_list(rows).save_to_disk(directory / "saved")
    datasets.Dataset.from_list(rows).to_parquet(directory / "rows.parquet", batch_size=2)
    write_jsonl(directory / "rows.jsonl", rows)
    packed = gzip.compress((directory / "rows.jsonl").read_bytes())
    (directory / "files").mkdir()
    (directory / "files" / "rows.jsonl.gz").write_bytes(packed)
    return [directory / name for name in ("saved", "rows.parquet", "rows.jsonl", "files")]


def test_every_container_and_every_split_into_parts_gives_the_same(longpo, model_dir, tmp_path):
    chat = load_chat(model_dir)
    rows = [published_row(chat, text_pair(index, 1 + index % 3)) for index in range(5)]
    found = {}
    for place, path in enumerate(every_way_in(rows, tmp_path)):
        for rank in (1, 0):
            output = tmp_path / f"output-{place}"
            words = ("--input", path, "--model", model_dir, "--output", output, "--part-size", 2, "--world-size", 2)
            assert longpo("import-hf", *words, "--rank", rank)[0] == 0
        found[path] = [(output / f"part-{part:05d}.jsonl").read_text() for part in range(3)]
        assert json.loads((output / "refused.json").read_text()) == []
        assert not list(output.glob(".*"))
    first = next(iter(found.values()))
    assert [json.loads(line)["doc_id"] for part in first for line in part.splitlines()] == [row["id"] for row in rows]
    assert all(parts == first for parts in found.values())


def shift(labels):
    return [*labels[1:], IGNORED]


def drop_turn(ids, labels, turn):
    """A conversation without the question and the answer of one turn (not the first)."""
    spans = labelled_spans(labels)
    start, end = spans[turn - 1][1], spans[turn][1]
    return ids[:start] + ids[end:], labels[:start] + labels[end:]


def change(row, name, make):
    row[name] = make(row[name])


def extend(row, names, ids, labels=None):
    for name in names:
        row[f"{name}_input_ids"] += ids
        row[f"{name}_labels"] += labels or [IGNORED] * len(ids)


def label_one_more(row, chat, pad):
    """As where labels run on until the next user message."""
    closing = chat.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    extend(row, ["chosen"], closing, closing)
    row["chosen_lm_labels"] += closing


def unlabel_ends(row, chat, pad):
    """As where the pad token is the end-of-turn token, and no padding gets a label."""
    end = chat.end_of_turn_ids[-1]
    for branch in ("chosen", "rejected"):
        row[f"{branch}_labels"] = [IGNORED if label == end else label for label in row[f"{branch}_labels"]]
        row[f"ref_{branch}_labels"] = [
            [IGNORED if label == end else label for label in labels] for labels in row[f"ref_{branch}_labels"]
        ]


def label_the_opening(row, chat, pad):
    """As where only the first tokens of the assistant's opening count as its marker."""
    for branch in ("chosen", "rejected"):
        for start, _ in labelled_spans(row[f"{branch}_labels"]):
            row[f"{branch}_labels"][start - 1] = row[f"{branch}_input_ids"][start - 1]


def double_the_start(row, chat, pad):
    for branch in ("chosen", "rejected"):
        first = row[f"{branch}_input_ids"][0]
        row[f"{branch}_input_ids"].insert(0, first)
        row[f"{branch}_labels"].insert(0, IGNORED)
    row["chosen_lm_labels"].insert(0, first)


def pad_left(row, chat, pad):
    for branch in ("chosen", "rejected"):
        row[f"{branch}_input_ids"] = [pad] * 3 + row[f"{branch}_input_ids"]
        row[f"{branch}_labels"] = [IGNORED] * 3 + row[f"{branch}_labels"]
    row["chosen_lm_labels"] = [pad] * 3 + row["chosen_lm_labels"]


def pad_right(row, chat, pad):
    extend(row, ["chosen"], [pad] * 3)
    row["chosen_lm_labels"] += [pad] * 3


def pad_references(row, chat, pad):
    row |= padded(row, pad, masks=False)


def pad_references_with_masks(row, chat, pad):
    row |= padded(row, pad, masks=True)


def shift_all(row, chat, pad):
    for name in ("chosen_labels", "rejected_labels", "chosen_lm_labels"):
        change(row, name, shift)
    for branch in ("chosen", "rejected"):
        change(row, f"ref_{branch}_labels", lambda lists: [shift(labels) for labels in lists])


def cut_shifted_labels(row, chat, pad):
    shift_all(row, chat, pad)
    change(row, "chosen_lm_labels", lambda labels: labels[:-1])


def nest(row, chat, pad):
    for name in ("chosen_input_ids", "chosen_labels"):
        change(row, name, lambda values: [values])


def lengthen_labels(row, chat, pad):
    change(row, "rejected_labels", lambda labels: [*labels, IGNORED])


def ignore_an_answer(row, chat, pad):
    start, end = labelled_spans(row["chosen_labels"])[1]
    row["chosen_lm_labels"][start : end - 1] = [IGNORED] * (end - 1 - start)


def add_a_reference(row, chat, pad):
    other = published_row(chat, text_pair(5, 1))
    for branch in ("chosen", "rejected"):
        for name in ("input_ids", "labels"):
            row[f"ref_{branch}_{name}"].insert(1, other[f"ref_{branch}_{name}"][0])


def leave_a_question(row, chat, pad):
    """The next user message, but no answer."""
    question = chat.tokenizer("What follows?", add_special_tokens=False)["input_ids"]
    extend(row, ["chosen"], question)
    row["chosen_lm_labels"] += question


REPAIRED = {
    label_one_more: "labels_behind_answer",
    unlabel_ends: "end_of_turn_without_label",
    label_the_opening: "labels_before_answer",
    double_the_start: "doubled_start",
    pad_left: "padding",
    pad_right: "padding",
    pad_references: "padding",
    pad_references_with_masks: "padding",
    shift_all: "shifted_labels",
    cut_shifted_labels: "label_lengths",
    nest: "nesting",
    lengthen_labels: "label_lengths",
    ignore_an_answer: "answer_outside_nll",
    add_a_reference: "surplus_references",
    leave_a_question: "text_behind_last_answer",
}


@pytest.mark.parametrize("fault", REPAIRED, ids=lambda fault: fault.__name__)
def test_repaired(longpo, model, chat, pad, tmp_path, fault):
    clean = published_row(chat, text_pair(1))
    broken = deepcopy(clean) | {"id": "broken"}
    fault(broken, chat, pad)
    (expected, found), report = import_rows(longpo, model, [clean, broken], tmp_path)
    assert found == expected | {"doc_id": "broken"}
    assert report[f"repaired_{REPAIRED[fault]}"] == 1
    others = {name: count for name, count in report.items() if not name.startswith("repaired")}
    assert others == {"documents_in": 2, "documents_out": 2, "turns_out": 6}


def lose_a_reference(row, chat, pad, turn=2):
    for branch in ("chosen", "rejected"):
        for name in ("input_ids", "labels"):
            del row[f"ref_{branch}_{name}"][turn]


def lose_a_turn(row, chat, pad, turn=2):
    ids, labels = drop_turn(row["rejected_input_ids"], row["rejected_labels"], turn)
    row |= {"rejected_input_ids": ids, "rejected_labels": labels}


def cut_the_last_answer(row, chat, pad):
    """As where a sequence was truncated."""
    for name in ("chosen_input_ids", "chosen_labels", "chosen_lm_labels"):
        change(row, name, lambda values: values[:-2])


def empty_an_answer(row, chat, pad, turn=2):
    start, end = labelled_spans(row["chosen_labels"])[turn]
    for name in ("chosen_input_ids", "chosen_labels", "chosen_lm_labels"):
        del row[name][start : end - 1]


def change_a_reference(row, chat, pad, turn=2):
    for name in ("input_ids", "labels"):
        row[f"ref_rejected_{name}"][turn][-2] += 1


def lose_a_turn_in_the_middle(row, chat, pad):
    """Behind it, nothing of the two conversations belongs together."""
    lose_a_turn(row, chat, pad, 1)


CUT = {
    lose_a_reference: 1,
    lose_a_turn: 1,
    cut_the_last_answer: 1,
    empty_an_answer: 1,
    change_a_reference: 1,
    lose_a_turn_in_the_middle: 2,
}


@pytest.mark.parametrize("fault", CUT, ids=lambda fault: fault.__name__)
def test_last_turns_cut_off(longpo, model, chat, pad, tmp_path, fault):
    pair, kept = text_pair(1), 3 - CUT[fault]
    shorter = published_row(chat, pair | {"turns": pair["turns"][:kept]})
    broken = published_row(chat, pair) | {"id": "broken"}
    fault(broken, chat, pad)
    (expected, found), report = import_rows(longpo, model, [shorter, broken], tmp_path)
    assert found == expected | {"doc_id": "broken"}
    assert (report["turns_out"], report["turns_cut"]) == (2 * kept, CUT[fault])


def refuse_unknown_ids(row, chat, pad):
    row["chosen_input_ids"][5] = row["rejected_input_ids"][5] = row["chosen_lm_labels"][5] = 100_000


def mask_inside(row, chat, pad):
    row["chosen_attention_mask"] = [1] * len(row["chosen_input_ids"])
    row["chosen_attention_mask"][9] = 0


def change_the_document(row, chat, pad):
    row["rejected_input_ids"][9] += 1


def change_an_instruction(row, chat, pad):
    row["rejected_input_ids"][labelled_spans(row["rejected_labels"])[1][0] - 6] += 1


def end_a_turn_twice(row, chat, pad):
    start, _ = labelled_spans(row["chosen_labels"])[1]
    end = chat.end_of_turn_ids[-1]
    row["chosen_input_ids"][start + 1] = row["chosen_labels"][start + 1] = row["chosen_lm_labels"][start + 1] = end


REFUSED = {
    refuse_unknown_ids: "outside_vocabulary",
    mask_inside: "padding_inside",
    change_the_document: "beginnings_differ",
    change_an_instruction: "instructions_differ",
    end_a_turn_twice: "end_of_turn_within_answer",
    lambda row, chat, pad: lose_a_reference(row, chat, pad, 1): "turn_without_reference",
    lambda row, chat, pad: change_a_reference(row, chat, pad, 0): "turn_without_reference",
    lambda row, chat, pad: empty_an_answer(row, chat, pad, 1): "empty_answer",
    lambda row, chat, pad: change(row, "chosen_labels", lambda labels: [IGNORED] * len(labels)): "no_answer",
    lambda row, chat, pad: change(row, "chosen_labels", lambda labels: [*labels, 5]): "label_lengths_differ",
    lambda row, chat, pad: change(row, "chosen_labels", lambda labels: [7] * len(labels)): "labels_differ",
    lambda row, chat, pad: change(row, "chosen_input_ids", lambda ids: [str(token) for token in ids]): "malformed",
    lambda row, chat, pad: change(row, "ref_chosen_labels", lambda lists: lists[:-1]): "malformed",
    lambda row, chat, pad: change(row, "ref_chosen_input_ids", lambda lists: None): "malformed",
}


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: REFUSED[fault])
def test_refused(longpo, model, chat, pad, tmp_path, fault):
    rows = [published_row(chat, text_pair(index)) for index in (1, 2)]
    fault(rows[0], chat, pad)
    records, report = import_rows(longpo, model, rows, tmp_path)
    assert [record["doc_id"] for record in records] == ["document-2"]
    assert report[f"refused_{REFUSED[fault]}"] == 1
    assert (report["documents_in"], report["documents_out"]) == (2, 1)
    (refusal,) = json.loads((tmp_path / "imported" / "refused.json").read_text())
    assert (refusal["doc_id"], refusal["where"]) == ("document-1", "rows.jsonl, record 1")
    assert refusal["reason"] == REFUSED[fault]


def test_pad_token_inside_without_a_mask(longpo, tmp_path):
    model = save_tiny(tmp_path / "model", "qwen2")
    chat = load_chat(model)
    row = published_row(chat, text_pair(0))
    for name in ("chosen_input_ids", "chosen_lm_labels", "rejected_input_ids"):
        row[name][20] = chat.tokenizer.pad_token_id
    _, report = import_rows(longpo, model, [row, published_row(chat, text_pair(1))], tmp_path)
    assert report["refused_padding_inside"] == 1


def test_limits(longpo, tmp_path):
    """A reference sequence must fit the model; whole conversations, what the user says."""
    model = save_tiny(tmp_path / "model", max_position_embeddings=60)
    chat = load_chat(model)
    pair = text_pair(1, 2)
    pair["turns"][0]["chunk"] = pair["document"][:200]
    rows = [published_row(chat, pair), published_row(chat, text_pair(2, 1)), published_row(chat, text_pair(3, 2))]
    longest = len(rows[1]["chosen_input_ids"]) + 3
    records, report = import_rows(longpo, model, rows, tmp_path, "--max-tokens", longest)
    assert [record["doc_id"] for record in records] == ["document-2"]
    assert (report["refused_reference_too_long"], report["refused_too_long"]) == (1, 1)


def test_nothing_usable_and_doubled_names(longpo, model_dir, tmp_path):
    chat = load_chat(model_dir)
    row = published_row(chat, text_pair(1, 1))
    words = ("import-hf", "--input", tmp_path / "rows.jsonl", "--model", model_dir, "--output")
    write_jsonl(tmp_path / "rows.jsonl", [row, row])
    status, _, err = longpo(*words, tmp_path / "doubled")
    assert (status, "rows.jsonl, record 2: the name 'document-1' was already used by" in err) == (2, True)
    status, _, err = longpo(*words, tmp_path / "other", "--id-field", "name")
    assert status == 0
    assert json.loads((tmp_path / "other" / "part-00000.jsonl").read_text().splitlines()[1])["doc_id"] == "rows.jsonl:2"
    write_jsonl(tmp_path / "rows.jsonl", [row | {"chosen_labels": [IGNORED] * 3}])
    status, _, err = longpo(*words, tmp_path / "useless")
    assert (status, "none of the 1 documents can be used; the first one (rows.jsonl, record 1)" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jsonl", "nowhere.jsonl cannot be loaded as a dataset"),
        ("hf:somebody/nothing", "hf:somebody/nothing cannot be loaded as a dataset"),
        ("text.txt", "text.txt is none of .parquet"),
        ("empty", "empty is no saved dataset and holds no .parquet"),
        ("empty.jsonl", "empty.jsonl holds no rows"),
        ("other.jsonl", "other.jsonl, record 1 has no column 'chosen_input_ids' \\(it has text\\)"),
        ("other.parquet", "other.parquet has no column 'chosen_input_ids'"),
        ("bad.parquet", "bad.parquet is not a readable Parquet file"),
        ("bad.jsonl.gz", "bad.jsonl.gz is not a whole gzip file"),
        ("splits", "splits has no split 'train'; choose one of dev"),
    ],
)
def test_wrong_input(longpo, model_dir, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for file, content in {
        "text.txt": b"text",
        "empty.jsonl": b"\n",
        "other.jsonl": b'{"text": "x"}\n',
        "bad.parquet": b"PAR1",
        "bad.jsonl.gz": gzip.compress(b"{}" * 100)[:-9],
    }.items():
        (tmp_path / file).write_bytes(content)
    texts = datasets.Dataset.from_dict({"text": ["x"]})
    texts.to_parquet(tmp_path / "other.parquet")
    datasets.DatasetDict({"dev": texts}).save_to_disk(tmp_path / "splits")
    words = ("import-hf", "--input", name, "--model", model_dir, "--output", tmp_path / "output")
    status, _, err = longpo(*words)
    assert status == 2
    assert re.search(message, err), err
    assert "\n" not in err
    assert not (tmp_path / "output").exists()


def test_score_refuses_another_tokenizer(longpo, model_dir, tmp_path):
    row = published_row(load_chat(model_dir), text_pair(1, 1))
    import_rows(longpo, model_dir, [row], tmp_path)
    other = save_stopping_model(tmp_path / "other", "qwen2")
    words = ("score", "--pairs", tmp_path / "imported", "--model", other, "--output", tmp_path / "scored")
    status, _, err = longpo(*words)
    assert (status, "was imported with tokenizer" in err) == (2, True)
    assert not (tmp_path / "scored").exists()
