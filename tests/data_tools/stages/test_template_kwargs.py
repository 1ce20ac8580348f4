"""What a chat template is told beside the messages, as Qwen3's that its answers shall not think."""

import json

import pytest
from support.tiny_models import save_tiny, tiny_tokenizer

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.data_tools.settings import TemplateKwargs
from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader

QUIET = {"enable_thinking": False}
USERS = ["A small boat. Who crosses?", "And who carries lamps?", "Why?"]
ANSWERS = ["The river.", "My neighbour carries\n12 of them", "No reason is given."]
TURN = {"chunk": "A small boat.", "instruction": "Who?", "chosen": "The old clock", "rejected": "One letter"}
OPENING = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("qwen3")


@pytest.fixture(scope="module")
def chat(tokenizer):
    return ChatFormat(tokenizer, template_kwargs=QUIET)


def prompt(tokenizer, user):
    message = [{"role": "user", "content": user}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, **QUIET)


def test_without_a_word_the_template_is_refused(tokenizer):
    """It would prompt for a thought, and write answers behind an empty one."""
    with pytest.raises(InputError, match=r"or make them so with --chat-template-kwargs .*enable_thinking.*: false"):
        ChatFormat(tokenizer)
    with pytest.raises(InputError, match="writes the same with enable_thinking true in chat_template_kwargs"):
        ChatFormat(tokenizer, template_kwargs={"enable_thinking": True})


def test_the_prompt_is_the_templates(tokenizer, chat):
    assert chat.prompt(USERS[0]) == prompt(tokenizer, USERS[0])
    assert tokenizer.decode(chat.prompt(USERS[0])).endswith(OPENING)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_every_answer_stands_behind_its_prompt(tokenizer, chat, turns):
    """Also the earlier ones, in front of which the template writes no thought."""
    answers = [chat.response_ids(text) for text in ANSWERS[:turns]]
    pair = chat.long_pair(USERS[:turns], answers, answers)
    between = tokenizer("\n", add_special_tokens=False)["input_ids"]
    parts = [
        prompt(tokenizer, user) + chat.finished(answer) for user, answer in zip(USERS[:turns], answers, strict=True)
    ]
    whole = parts[0] + [token for part in parts[1:] for token in between + part]
    assert pair.trunk_ids + pair.chosen_ids == whole
    assert [pair.chosen_ids[start:end] for start, end in pair.chosen_spans] == [chat.finished(ids) for ids in answers]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (QUIET, "writes the same with enable_thinking false in chat_template_kwargs and without; leave it out"),
        ({"tokenize": True}, "chat_template_kwargs names tokenize, which is not for the template"),
        ({"strftime_now": "x"}, "chat_template_kwargs names strftime_now, which is not"),
    ],
)
def test_what_the_template_ignores_is_refused(told, message):
    with pytest.raises(InputError, match=message):
        ChatFormat(tiny_tokenizer("qwen2.5"), template_kwargs=told)


@pytest.mark.parametrize("text", ["{", "[]", "false", '{"a": null}', '{"a": [1]}'])
def test_other_values_are_refused(text):
    with pytest.raises(InputError, match=r"chat_template_kwargs .* must be a JSON object of numbers, texts, true"):
        TemplateKwargs(text)


def test_given_values_win_over_those_of_the_latest_stage():
    history = {"chunk": {"chat_template_kwargs": {"a": 1}}, "instruct": {"chat_template_kwargs": QUIET}, "filter": {}}
    assert TemplateKwargs().or_recorded(history) == QUIET
    assert TemplateKwargs('{"b": 2}').or_recorded(history) == {"b": 2}
    assert TemplateKwargs("{}").or_recorded(history) == TemplateKwargs().or_recorded({}) == {}


@pytest.mark.slow
def test_later_stages_tell_it_too(longpo, tmp_path):
    model = save_tiny(tmp_path / "model", "qwen3")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"doc_id": "d", "document": "A small boat. The river.", "turns": [TURN, TURN]}) + "\n")
    score = ("score", "--pairs", pairs, "--model", model, "--output", tmp_path / "scored")
    status, _, err = longpo(*score)
    assert (status, "--chat-template-kwargs" in err, (tmp_path / "scored").exists()) == (2, True, False)
    told = ("--chat-template-kwargs", json.dumps(QUIET))
    assert longpo(*score, *told)[0] == 0
    recorded = json.loads((tmp_path / "scored" / "settings.json").read_text())["settings"]
    assert recorded["chat_template_kwargs"] == QUIET
    status, _, err = longpo(*score, "--chat-template-kwargs", '{"enable_thinking": 0}')
    assert status == 2
    assert "writes the same with enable_thinking 0 in chat_template_kwargs" in err
    pack = ("pack", "--pairs", tmp_path / "scored", "--model", model, "--output", tmp_path / "shards")
    assert longpo(*pack)[0] == 0
    shards = ShardReader(tmp_path / "shards")
    assert shards.manifest.generation["score"]["chat_template_kwargs"] == QUIET
    tokenizer = load_chat(model, template_kwargs=QUIET).tokenizer
    assert tokenizer.decode(shards[0].trunk_ids).endswith(OPENING)
    assert tokenizer.decode(shards[0].chosen_ids).count(OPENING) == 1
    assert longpo("inspect", tmp_path / "shards", "--model", model)[0] == 0


@pytest.mark.slow
def test_chunks_record_it_and_instructions_inherit_it(longpo, tmp_path):
    model = save_tiny(tmp_path / "model", "qwen3")
    (tmp_path / "book.txt").write_text("The river crosses the quiet village.\n\n" * 20)
    chunk = ("chunk", "--input", tmp_path / "book.txt", "--model", model, "--output", tmp_path / "chunks")
    chunk = (*chunk, "--chunk-tokens", 100)
    assert longpo(*chunk, "--chat-template-kwargs", json.dumps(QUIET))[0] == 0
    instruct = ("instruct", "--input", tmp_path / "chunks", "--model", model, "--output", tmp_path / "instructed")
    assert longpo(*instruct, "--max-new-tokens", 4, "--dry-run")[0] == 0
    recorded = json.loads((tmp_path / "chunks" / "settings.json").read_text())["settings"]
    assert recorded["chat_template_kwargs"] == QUIET
