"""Instructions drawn from a model's answers, their lead-ins, and models that write none."""

import json
from dataclasses import dataclass, field

import pytest

from nemo_longpo.data_tools.engines.engine import Completion
from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.data_tools.prompts import Prompts
from nemo_longpo.data_tools.runner.rows import Row
from nemo_longpo.data_tools.settings import InstructSettings
from nemo_longpo.data_tools.stages.instruct import _instruct_rows
from nemo_longpo.data_tools.stages.model_stage import LoadedModel
from nemo_longpo.errors import InputError


@dataclass
class Parrot:
    """An engine that answers every prompt with the next of its answers."""

    chat: object
    answers: list[str]
    context_length: int = 4096
    max_length: int | None = None
    finish_reason: str = "stop"
    writes_json: bool = False
    schemas: list = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    def generate(self, prompts, sampling, seeds, tick):
        self.prompts += prompts
        self.schemas.append(sampling.json_schema)
        answers = [self.answers[index % len(self.answers)] for index in range(len(prompts))]
        return [Completion(self.chat.response_ids(answer), self.finish_reason) for answer in answers]


@pytest.fixture(scope="module")
def chat(model_dir):
    return load_chat(model_dir)


def instruct(chat, answers, *, documents=1, turns=2, prompts=None, finish_reason="stop", **settings):
    rows = [
        Row({"doc_id": f"d{n}", "document": "A boat.", "turns": [{"chunk": "A boat."}] * turns}, f"in.jsonl, line {n}")
        for n in range(1, documents + 1)
    ]
    loaded = LoadedModel(chat, Parrot(chat, answers, finish_reason=finish_reason), prompts or Prompts())
    return _instruct_rows(rows, print, loaded, InstructSettings(**settings), [])


def test_one_of_the_pool_is_drawn(chat):
    answer = "1. Who ran?\n2. Why did he run?\n3. Where did he run?"
    result = instruct(chat, [answer], documents=30, lead_in_probability=0.0)
    turns = [turn for record in result.records for turn in record["turns"]]
    assert {turn["instruction"] for turn in turns} == {"Who ran?", "Why did he run?", "Where did he run?"}
    assert all(turn["instruction_pool"] == ["Who ran?", "Why did he run?", "Where did he run?"] for turn in turns)
    assert result.counts["turns_out"] == result.counts["turns_in"] == 60
    assert instruct(chat, [answer], documents=30, lead_in_probability=0.0).records == result.records
    assert instruct(chat, [answer], documents=30, lead_in_probability=0.0, seed=1).records != result.records


def test_list_ends_at_a_special_token(chat):
    """The model wrote on after its own end; the text of such a token is empty."""
    loaded = LoadedModel(chat, Parrot(chat, []), Prompts())
    first, second = chat.response_ids("1. Who ran?\n"), chat.response_ids("2. I am the next user.")
    loaded.engine.generate = lambda *_: [Completion([*first, chat.tokenizer.bos_token_id, *second], "stop")]
    row = Row({"doc_id": "d", "document": "A boat.", "turns": [{"chunk": "A boat."}]}, "in.jsonl, line 1")
    result = _instruct_rows([row], print, loaded, InstructSettings(), [])
    assert result.records[0]["turns"][0]["instruction_pool"] == ["Who ran?"]


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 40, 80), (1.0, 120, 120)])
def test_lead_ins_by_probability(chat, probability, least, most):
    result = instruct(chat, ["1. Who ran?"], documents=60, lead_in_probability=probability)
    instructions = [turn["instruction"] for record in result.records for turn in record["turns"]]
    led = [text for text in instructions if text != "Who ran?"]
    assert least <= len(led) <= most
    assert all(text.endswith(": Who ran?") and text[: -len(" Who ran?")] in Prompts().lead_ins for text in led)


def test_lead_ins_change_no_draw(chat):
    answer = "1. Who ran?\n2. Why did he run?\n3. Where did he run?"
    plain = instruct(chat, [answer], documents=9, lead_in_probability=0.0).records
    led = instruct(chat, [answer], documents=9, lead_in_probability=1.0).records
    for before, after in zip(plain, led, strict=True):
        for one, other in zip(before["turns"], after["turns"], strict=True):
            assert other["instruction"].endswith(f": {one['instruction']}")
    assert instruct(chat, [answer], documents=9, prompts=Prompts(lead_ins=())).records == plain


def test_turns_without_an_instruction_are_left_out(chat):
    result = instruct(chat, ["1. Who ran?", "Sure! Here are my requests:"], documents=3, lead_in_probability=0.0)
    assert [len(record["turns"]) for record in result.records] == [1, 1, 1]
    assert result.counts == {
        "documents_in": 3,
        "documents_out": 3,
        "turns_in": 6,
        "turns_out": 3,
        "dropped_no_instruction": 3,
    }
    result = instruct(chat, ["1. Who ran?", "Hm:", "Hm:"], documents=2, turns=3, lead_in_probability=0.0)
    assert [len(record["turns"]) for record in result.records] == [1, 1]
    result = instruct(chat, ["1. Who ran?", "Hm:", "Hm:", "Hm:"], documents=2, lead_in_probability=0.0)
    assert [record["doc_id"] for record in result.records] == ["d1"]


def ask(chat, answers, *, writes_json=True, prompts=None, finish_reason="stop", **settings):
    """(the pool, the text that was asked, the schema that the answer was held to) for one chunk."""
    parrot = Parrot(chat, answers, finish_reason=finish_reason, writes_json=writes_json)
    row = Row({"doc_id": "d", "document": "A boat.", "turns": [{"chunk": "A boat."}]}, "in.jsonl, line 1")
    result = _instruct_rows(
        [row], print, LoadedModel(chat, parrot, prompts or Prompts()), InstructSettings(**settings), []
    )
    (record,) = result.records
    return record["turns"][0]["instruction_pool"], chat.text(parrot.prompts[0]), parrot.schemas[0]


THREE = ["Who ran?", "Why did he run?", "Where did he run?"]
SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 400}, "minItems": 3, "maxItems": 3}


def test_json_is_requested_if_supported(chat):
    pool, asked, schema = ask(chat, [json.dumps(THREE)], pool_size=3)
    assert (pool, schema) == (THREE, SCHEMA)
    assert "a JSON list of 3 strings" in asked
    assert "numbered" not in asked
    plain = {
        "an engine that cannot": {"writes_json": False},
        "not wanted": {"structured_output": False},
        "own words with a form of their own": {"prompts": Prompts(write_instruction="{document} List {count}.")},
    }
    for case, options in plain.items():
        pool, asked, schema = ask(chat, ["\n".join(f"- {text}" for text in THREE)], pool_size=3, **options)
        assert (pool, schema) == (THREE, None), case
        assert "JSON" not in asked, case
    assert ask(chat, ["Who ran?"], pool_size=1)[2] is None


def test_incomplete_json_is_read_as_text(chat):
    cut = json.dumps(THREE)[:-6]
    assert ask(chat, [cut], pool_size=3, finish_reason="length")[0] == THREE[:2]
    assert ask(chat, ["\n".join(f"{n}. {text}" for n, text in enumerate(THREE, 1))], pool_size=3)[0] == THREE


def test_json_prompt_echo_is_rejected(chat):
    answer = json.dumps(["Write them as a JSON list of 3 strings", *THREE[:2]])
    assert ask(chat, [answer], pool_size=3)[0] == THREE[:2]


def test_rejected_items_are_counted_and_kept(chat):
    mixed = (
        '1. One request is: "Who ran?"\n2. A second request is: "Who ran?"\n3. What is the passage about?\n'
        "4. He ran because of the storm.\n5. 1.1\n6. A boat."
    )
    echo = "This is a list of requests that a careful reader could make about this passage."
    result = instruct(chat, [mixed, echo], documents=2, lead_in_probability=0.0)
    assert result.counts == {
        "documents_in": 2,
        "documents_out": 2,
        "turns_in": 4,
        "turns_out": 2,
        "dropped_no_instruction": 2,
        "rejected_repeated": 2,
        "rejected_points_at_passage": 2,
        "rejected_statement": 2,
        "rejected_no_letters": 2,
        "rejected_copy": 2,
        "rejected_prompt_echo": 2,
    }
    for record in result.records:
        (turn,) = record["turns"]
        assert (turn["instruction"], turn["instruction_pool"]) == ("Who ran?", ["Who ran?"])
        assert turn["instruction_answer"] == mixed
        assert [item["reason"] for item in turn["instruction_rejected"]] == [
            "repeated",
            "points_at_passage",
            "statement",
            "no_letters",
            "copy",
        ]
        assert turn["instruction_rejected"][0]["text"] == 'A second request is: "Who ran?"'
        assert record["turns_without_instruction"] == [
            {"turn": 1, "instruction_answer": echo, "instruction_rejected": [{"reason": "prompt_echo", "text": echo}]}
        ]
    assert "turns_without_instruction" not in instruct(chat, ["1. Who ran?"]).records[0]


def test_a_kept_answer_is_bounded(chat):
    long = "1. Who ran?\n2. " + "He ran and ran. " * 1000
    (record,) = instruct(chat, [long], turns=1, lead_in_probability=0.0).records
    (turn,) = record["turns"]
    assert turn["instruction_answer"] == long[:4000]
    assert [(item["reason"], len(item["text"])) for item in turn["instruction_rejected"]] == [("too_long", 400)]


def test_unchecked_requests_are_all_kept(chat):
    answers = ["1. He ran.\n2. What is the passage about?\n3. Who ran?\n4. Who ran"]
    (record,) = instruct(chat, answers, turns=1, check_requests=False).records
    assert record["turns"][0]["instruction_pool"] == ["He ran.", "What is the passage about?", "Who ran?"]


def test_error_for_no_instructions_names_the_reasons(chat):
    with pytest.raises(InputError, match=r"items left out: rejected_no_letters 8, rejected_statement 8\); check that"):
        instruct(chat, ["1. He ran.\n2. 1.1"], documents=4)


def test_error_without_instructions_quotes_an_answer(chat):
    message = r"line 1: no usable instruction .* any of the model's 8 answers; the first begins with 'Sure! .*--prompts"
    with pytest.raises(InputError, match=message):
        instruct(chat, ["Sure! Here are my requests:", "Hm:"], documents=4)
    assert instruct(chat, ["Hm:"], documents=3).records == []
    with pytest.raises(InputError, match="no usable instruction"):
        instruct(chat, ["1. Who ran?"], documents=4, finish_reason="length")


def test_a_model_that_writes_no_instruction(longpo, corpus, model_dir, tmp_path):
    chunk = ("chunk", "--input", corpus, "--model", model_dir, "--output", tmp_path / "chunks", "--chunk-tokens", 128)
    assert longpo(*chunk)[0] == 0
    words = ("instruct", "--model", model_dir, "--max-new-tokens", 1)
    status, _, err = longpo(*words, "--input", tmp_path / "chunks", "--output", tmp_path / "out")
    assert status == 2
    assert "no usable instruction could be read from any of the model's" in err
    assert not (tmp_path / "out").exists()
    record = {"doc_id": "d", "document": "A boat.", "turns": [{"chunk": "A boat."}]}
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    status, _, err = longpo(*words, "--input", tmp_path / "one.jsonl", "--output", tmp_path / "one")
    assert status == 2
    assert "the model's only answer, which begins with" in err
    assert "\n" not in err


@pytest.mark.slow
def test_no_lead_ins_gives_bare_instruction(longpo, corpus, model_dir, tmp_path):
    chunk = ("chunk", "--input", corpus, "--model", model_dir, "--output", tmp_path / "chunks", "--chunk-tokens", 128)
    assert longpo(*chunk)[0] == 0
    (tmp_path / "prompts.json").write_text('{"lead_ins": []}')
    words = ("instruct", "--input", tmp_path / "chunks", "--model", model_dir, "--pool-size", 1, "--max-new-tokens", 20)
    words += ("--lead-in-probability", 1, "--no-check-requests")
    assert longpo(*words, "--output", tmp_path / "bare", "--prompts", tmp_path / "prompts.json")[0] == 0
    assert longpo(*words, "--output", tmp_path / "led")[0] == 0
    for name, count in (("bare", 0), ("led", 1)):
        turns = [
            turn
            for path in (tmp_path / name).glob("part*")
            for line in path.read_text().splitlines()
            for turn in json.loads(line)["turns"]
        ]
        assert turns
        led = [turn["instruction"].startswith(Prompts().lead_ins) for turn in turns]
        assert any(led) == bool(count)
    settings = json.loads((tmp_path / "bare" / "settings.json").read_text())["settings"]
    assert settings["prompts"]["lead_ins"] == []
