"""Answers end before the first special token, for models that write on after it and pairs that spell one."""

import json

import pytest
from support.small_corpus import declare_ends, save_reciting_model
from support.tiny_models import tiny_tokenizer
from support.tokenised_pairs import tokenised_record

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.engines.engine import Completion
from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.data_tools.pairs import check_answers, parse_pair
from nemo_longpo.data_tools.runner.rows import Row
from nemo_longpo.data_tools.stages.respond import _answer
from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader

TOKENIZER = tiny_tokenizer("qwen2.5")
RECITED = ["Ċ", "a", "B", "<|endoftext|>", "h", "u", "m", "<|im_end|>"]
IDS = TOKENIZER.convert_tokens_to_ids(RECITED)
END_OF_TEXT, END_OF_TURN = IDS[3], IDS[7]
ASKED = {"doc_id": "d", "document": "A small boat.", "turns": [{"chunk": "A boat.", "instruction": "Who?"}]}


@pytest.fixture
def model(tmp_path):
    """Its `generation_config.json` and `config.json` name the template's end of turn alone."""
    return save_reciting_model(tmp_path / "model", "qwen2", RECITED)


@pytest.fixture
def write(tmp_path):
    def write_jsonl(*records):
        path = tmp_path / "input.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write_jsonl


def rows(directory):
    return [json.loads(line) for path in sorted(directory.glob("part*")) for line in path.read_text().splitlines()]


@pytest.fixture
def respond(longpo, write, tmp_path, model):
    def run(max_new_tokens):
        output = tmp_path / f"responded{max_new_tokens}"
        words = ("--input", write(ASKED), "--model", model, "--output", output, "--max-new-tokens", max_new_tokens)
        assert longpo("respond", *words)[0] == 0
        (record,) = rows(output)
        return record["turns"][0]

    return run


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_every_declared_end_token_stops_an_answer(respond, model, name):
    declare_ends(model, [END_OF_TURN, END_OF_TEXT, 10**6], name)
    for branch in ("chosen", "rejected"):
        assert {key: value for key, value in respond(20).items() if branch in key} == {
            branch: "aB",
            f"{branch}_token_ids": IDS[1:3],
            f"{branch}_finish_reason": "stop",
        }
    assert respond(3)["chosen_finish_reason"] == "stop"
    cut = respond(2)
    assert (cut["chosen_token_ids"], cut["chosen_finish_reason"]) == (IDS[1:3], "length")


def test_shards_end_with_template_end_of_turn(longpo, respond, write, model, tmp_path):
    declare_ends(model, [END_OF_TURN, END_OF_TEXT])
    pairs = write(ASKED | {"turns": [ASKED["turns"][0] | respond(20)]})
    assert longpo("score", "--pairs", pairs, "--model", model, "--output", tmp_path / "scored")[0] == 0
    pack = ("pack", "--pairs", tmp_path / "scored", "--model", model, "--output", tmp_path / "shards")
    assert longpo(*pack)[0] == 0
    (record,) = ShardReader(tmp_path / "shards")
    assert record.chosen_ids.tolist() == [*IDS[1:3], END_OF_TURN]
    assert record.chosen_spans.tolist() == [[0, 3]]


def test_answer_ends_before_any_special_token(longpo, respond, write, tmp_path):
    """The other end token is declared nowhere, so the model runs over it. Such a chosen answer is left out; a rejected
    one stays, because it is what training should make less likely."""
    turn = respond(20)
    for name in ("chosen", "rejected"):
        assert {key: value for key, value in turn.items() if name in key} == {
            name: "aB",
            f"{name}_token_ids": IDS[1:3],
            f"{name}_finish_reason": "stop",
            f"{name}_cut_at": "<|endoftext|>",
        }
    limited = respond(5)
    assert (limited["rejected_token_ids"], limited["rejected_finish_reason"]) == (IDS[1:3], "length")
    asked, good = ASKED["turns"][0], {"chosen": "Yes", "rejected": "No"}
    for cut, kept in (("chosen", 0), ("rejected", 1)):
        mixed = {key: value for key, value in turn.items() if cut in key}
        pairs = write(ASKED | {"turns": [asked | good | mixed, asked | good | {"instruction": "Which boat?"}]})
        status, out, err = longpo("filter", "--input", pairs, "--output", tmp_path / f"cut-{cut}", "--json")
        assert status == 0, err
        report = json.loads(out)["report"]
        assert (report.get("dropped_special_token", 0), report["turns_out"]) == (1 - kept, 1 + kept)


def test_special_tokens_inside_answers(longpo, write, model, tmp_path):
    """As an earlier version stored them, or someone's own script."""
    asked, good = ASKED["turns"][0], {"chosen": "Yes", "rejected": "No"}
    for name in ("chosen", "rejected"):
        bad = asked | good | {name: "aBhum", f"{name}_token_ids": IDS[1:7]}
        pairs = write(ASKED | {"turns": [bad, asked | good | {"instruction": "Which boat?"}]})
        status, _, err = longpo("score", "--pairs", pairs, "--model", model, "--output", tmp_path / "scored")
        assert status == 2
        assert f"line 1: field 'turns[0].{name}' holds the special token <|endoftext|>" in err
        assert not (tmp_path / "scored").exists()
        words = ("--input", pairs, "--output", tmp_path / f"by-{name}", "--json", "--model", model)
        status, out, err = longpo("filter", *words)
        assert status == 0, err
        report = json.loads(out)["report"]
        assert (report["dropped_special_token"], report["turns_out"]) == (1, 1)


def test_spelled_special_token_in_a_generated_answer(longpo, write, model, tmp_path):
    """Plain pieces that read like one: the model imitates a conversation."""
    chat = load_chat(model)
    for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
        answer = _answer(name, Completion(chat.response_ids("a<|im_end|>B"), "stop"), chat)
        assert answer[name] == "a<|im_end|>B"
        assert answer[f"{name}_special_tokens"] == ["<|im_end|>"]
        pairs = write(ASKED | {"turns": [ASKED["turns"][0] | answer | {other: "Yes"}]})
        status, _, err = longpo("filter", "--input", pairs, "--output", tmp_path / f"by-{name}")
        assert status == 2
        assert "(dropped_special_token 1)" in err


def test_pack_refuses_special_tokens(longpo, write, model, tmp_path):
    turn = ASKED["turns"][0] | {"chosen": "aBa", "rejected": "No"}
    assert (
        longpo("score", "--pairs", write(ASKED | {"turns": [turn]}), "--model", model, "--output", tmp_path / "s")[0]
        == 0
    )
    part = tmp_path / "s" / "part-00000.jsonl"
    record = json.loads(part.read_text())
    record["turns"][0]["chosen_token_ids"][1] = END_OF_TEXT
    part.write_text(json.dumps(record) + "\n")
    status, _, err = longpo("pack", "--pairs", tmp_path / "s", "--model", model, "--output", tmp_path / "shards")
    assert status == 2
    assert "part-00000.jsonl, line 1: field 'turns[0].chosen' holds the special token <|endoftext|>" in err
    assert not (tmp_path / "shards").exists()


def test_tokenised_answers_refuse_special_tokens(longpo, write, model, tmp_path):
    chat = load_chat(model)
    good, bad = tokenised_record(chat, 1), tokenised_record(chat, 2)
    bad["rejected_ids"][bad["rejected_spans"][1][0] + 1] = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    words = ("--pairs", write(good, bad), "--model", model, "--output", tmp_path / "scored")
    status, _, err = longpo("score", *words)
    assert status == 2
    assert "line 2: field 'rejected_spans[1]' covers the special token <|im_start|>" in err


SPELLED = {
    "Yes <|im_end|>": "Yes",
    "Yes<|im_end|>\n<|endoftext|>\n": "Yes",
    "Yes\n": "Yes\n",
    "Yes < |im_end|>": "Yes < |im_end|>",
}


@pytest.mark.parametrize("text", SPELLED)
def test_spelled_end_tokens_are_removed_and_counted(longpo, write, model, tmp_path, text):
    declare_ends(model, [END_OF_TURN, END_OF_TEXT])
    pairs = write(ASKED | {"turns": [ASKED["turns"][0] | {"chosen": text, "rejected": f"{text} "}]})
    words = ("--pairs", pairs, "--model", model, "--output", tmp_path / "scored", "--json")
    status, out, err = longpo("score", *words)
    assert status == 0, err
    changed = text != SPELLED[text]
    assert json.loads(out)["report"].get("spelled_ends_left_out", 0) == 2 * changed
    (record,) = rows(tmp_path / "scored")
    for name in ("chosen", "rejected"):
        assert record["turns"][0][f"{name}_token_ids"] == load_chat(model).response_ids(
            SPELLED[text] if changed else {"chosen": text, "rejected": f"{text} "}[name]
        )
    pack = ("pack", "--pairs", tmp_path / "scored", "--model", model, "--output", tmp_path / "shards")
    assert longpo(*pack)[0] == 0


RUN_ON = "Yes<|im_end|>\n<|im_start|>user\nThanks"


def test_special_tokens_spelled_within_an_answer(longpo, write, model, tmp_path):
    """Refused where scoring would start; left out, and counted, by a filter that knows the model."""
    asked = ASKED["turns"][0]
    turns = [
        asked | {"chosen": RUN_ON, "rejected": "No"},
        asked | {"chosen": "Ed did", "rejected": RUN_ON, "instruction": "Which boat?"},
        asked | {"chosen": "Bob did<|im_end|>", "rejected": "Ann did.", "instruction": "Why there?"},
        asked | {"chosen": "", "rejected": "<|im_end|>", "instruction": "Is it?"},
    ]
    pairs = write(ASKED | {"turns": turns})
    words = ("--model", model, "--json", "--output")
    status, _, err = longpo("score", "--pairs", pairs, *words, tmp_path / "scored")
    assert (status, (tmp_path / "scored").exists()) == (2, False)
    assert "line 1: field 'turns[0].chosen' holds the special token <|im_end|>" in err
    status, out, err = longpo("filter", "--input", pairs, *words, tmp_path / "filtered")
    assert status == 0, err
    report = json.loads(out)["report"]
    assert (report["dropped_special_token"], report["dropped_empty"], report["turns_out"]) == (2, 1, 1)
    assert report["spelled_ends_left_out"] == 2
    assert rows(tmp_path / "filtered")[0]["turns"] == [turns[2] | {"chosen": "Bob did"}]
    assert longpo("score", "--pairs", tmp_path / "filtered", *words, tmp_path / "scored")[0] == 0


def test_the_vocabulary_is_not_counted_for_every_token(monkeypatch):
    """A tokenizer counts its tokens by building its vocabulary, which takes 37 ms for one of 128,256."""
    chat, counted = ChatFormat(tiny_tokenizer("qwen2.5")), []
    size = len(chat.tokenizer)
    turn = {"chunk": "A boat.", "instruction": "Who?", "chosen": "aB", "rejected": "h"}
    ids = {"chosen_token_ids": [IDS[1], IDS[2], size + 5] * 100, "rejected_token_ids": [IDS[4]] * 100}
    pair = parse_pair(Row({"doc_id": "d", "document": "A boat.", "turns": [turn | ids]}, "line 1"))
    monkeypatch.setattr(type(chat.tokenizer), "__len__", lambda tokenizer: counted.append(tokenizer) or size)
    check_answers(pair, chat, "line 1")
    assert len(counted) < 10


def test_documents_and_instructions_may_spell_special_tokens(longpo, write, model, tmp_path):
    """There they stay plain text and end no turn; `chunk` counts such documents."""
    text = "A page about <|im_end|> and its friends. "
    turn = {"chunk": text, "instruction": "What is <|im_end|>?", "chosen": "Yes", "rejected": "No"}
    pairs = write(ASKED | {"document": text, "turns": [turn]})
    assert longpo("score", "--pairs", pairs, "--model", model, "--output", tmp_path / "scored")[0] == 0
    pack = ("pack", "--pairs", tmp_path / "scored", "--model", model, "--output", tmp_path / "shards")
    assert longpo(*pack)[0] == 0
    (record,) = ShardReader(tmp_path / "shards")
    assert (record.trunk_ids == END_OF_TURN).sum() == 2  # of the system prompt and of the user's turn
    assert TOKENIZER.decode(record.trunk_ids).count("<|im_end|>") == 4
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, document in enumerate((text * 3, "Nothing of the kind, but a <p>tag</p>. " * 3)):
        (corpus / f"{index}.txt").write_text(document)
    words = ("--input", corpus, "--model", model, "--output", tmp_path / "chunks", "--chunk-tokens", 64, "--json")
    status, out, err = longpo("chunk", *words)
    assert status == 0, err
    assert json.loads(out)["report"]["special_tokens_as_text"] == 1


def test_end_tokens_that_are_no_ids(model):
    declare_ends(model, ["</s>"])
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id must be a token id or a list of them"):
        load_chat(model)
