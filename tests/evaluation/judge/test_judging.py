"""Both benchmarks from the published files to scores, with a judge and a model that are told what to say."""

import json
import re
from dataclasses import replace
from datetime import date

import pytest
from support.fake_judge import CATEGORIES, SYSTEM, write_lines
from support.fake_vllm import Fault
from support.tiny_models import tiny_tokenizer

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.benchmarks import Preparation
from nemo_longpo.evaluation.eval_settings import JudgeSettings
from nemo_longpo.evaluation.judge import dialogues, judgements, longbench_chat, mt_bench
from nemo_longpo.evaluation.language_model import Answers, EngineLM
from nemo_longpo.evaluation.suites import BENCHMARKS

pytestmark = pytest.mark.slow  # models and the harness are loaded

TOKENIZER = tiny_tokenizer("qwen2.5")
BUILDERS = {
    "mt_bench": mt_bench.build,
    "longbench_chat": longbench_chat.build,
    "longbench_chat_en": longbench_chat.build,
}


class Evaluated:
    """One model under one output directory, whose answers are those of an engine."""

    def __init__(self, output, data, judge, engine, label="after"):
        self.output, self.data, self.judge, self.engine, self.label = output, data, judge, engine, label

    def model(self):
        answers = Answers(self.output / "answers", {"model": self.label})
        stops = frozenset({TOKENIZER.eos_token_id})
        return EngineLM(TOKENIZER, stops, answers, lambda: self.engine, lambda _: None, date(2026, 7, 1))

    def task(self, name, **changed):
        model = self.model()
        settings = {"data": self.data, "tokenizer": TOKENIZER, "max_length": 4096, "seed": 0, "questions": self.output}
        settings["count_tokens"] = lambda prompt, prefix: len(
            model.tok_encode(model.apply_chat_template([{"role": "user", "content": prompt}]))
        )
        (task,) = BUILDERS[name](replace(BENCHMARKS[name], max_new_tokens=20), Preparation(**(settings | changed)))
        return task

    def prompts(self, name, max_length=4096, drop=False, system_prompt=None, **changed):
        return dialogues.dialogue_prompts(
            self.task(name, max_length=max_length, **changed),
            self.model(),
            max_length,
            system_prompt=system_prompt,
            drop=drop,
        )

    def scores(self, name, **changed):
        asked = self.prompts(name, **changed)
        return judgements.judge_answers(asked, asked.answer(self.model()), self.judge, self.output, self.label)


@pytest.fixture
def evaluated(tmp_path, data, judge, engine):
    return Evaluated(tmp_path / "output", data, judge(), engine)


def most_tokens(prompts):
    return max(one.prompt_tokens + one.new_tokens for one in prompts.asked)


def lines(directory):
    (path,) = directory.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_second_turn_reads_the_first_answer(evaluated, engine):
    """All first turns are asked together, and then all second ones."""
    evaluated.scores("mt_bench")
    first, second = engine.asked
    assert len(first) == len(second) == 5
    assert all("lamp" not in text for text in first)
    for text, number in zip(second, [81, 101, 111, 121, 82], strict=True):
        assert re.search(rf"Tell of boat {number}\..*assistant\s+{number}\.\s.*And of lamp {number}\?", text, re.DOTALL)


def test_judge_reads_the_published_prompts_filled_in(evaluated, server):
    """With references for reasoning, math and coding, without for the rest."""
    evaluated.scores("mt_bench")
    assert all(body["messages"][0] == {"role": "system", "content": SYSTEM} for body in server.bodies)
    assert sorted(server.judged) == sorted(
        text
        for number, category in CATEGORIES.items()
        for text in (
            [
                f"Rate: Tell of boat {number}. / {number}.",
                f"Rate the second: Tell of boat {number}. / {number}. / And of lamp {number}? / {number}?",
            ]
            if category == "writing"
            else [
                f"Rate by reference north {number}: Tell of boat {number}. / {number}.",
                f"Rate the second by north {number}, south {number}: "
                f"Tell of boat {number}. / {number}. / And of lamp {number}? / {number}?",
            ]
        )
    )


def test_scores_of_mt_bench_are_means_over_turns(evaluated, server):
    def says(prompt):
        return f"Hm. [[{2 if 'second' in prompt else 9}]] or [[1]]" if "101" in prompt else "So so: [4.5]"

    server.says = says
    scores = evaluated.scores("mt_bench")
    found = {sample.id: (sample.score, sample.category, sample.parts) for sample in scores.samples}
    plain = pytest.approx(0.45)
    assert found["101"] == (pytest.approx(0.55), "reasoning", {"turn 1": 0.9, "turn 2": 0.2})
    assert found["82"] == (plain, "writing", {"turn 1": plain, "turn 2": plain})
    assert (scores.scale, scores.unscored, scores.metric, scores.column) == (10.0, 0, "rating", "MT-Bench")
    assert (scores.judge.name, scores.judge.first_day) == ("strict", date.today().isoformat())


def test_longbench_chat_by_the_published_rules(evaluated, server):
    """Rated examples by the question's idx; the last rating counts; line breaks of answers are blanks."""
    evaluated.engine.answer = lambda prompt: "at\nthe gate"
    server.says = lambda prompt: "not [[3]] but [[8.0/10]]"
    scores = evaluated.scores("longbench_chat")
    assert sorted(server.judged)[1] == "Where is the lamp? = at gate 3 | shot 20 -> 4 | shot 21 -> 5 | at the gate"
    assert server.bodies[0]["messages"][0]["content"] == SYSTEM
    assert [sample.score for sample in scores.samples] == [0.8, 0.8, 0.8]
    english = evaluated.scores("longbench_chat_en")
    assert [sample.id for sample in english.samples] == ["1", "3"]
    assert len(server.judged) == 3, "what was rated before is not rated again"


@pytest.mark.parametrize(
    ("rating", "reply", "value"),
    [
        (mt_bench.rating, "[[7]]", 7),
        (mt_bench.rating, "[[7.5]] [[2]]", 7.5),
        (mt_bench.rating, "step [1], so [[9]]", 9),
        (mt_bench.rating, "[9]", 9),
        (mt_bench.rating, "Rating: 9", None),
        (mt_bench.rating, "[[11]]", None),
        (mt_bench.rating, "[[0]]", None),
        (mt_bench.rating, "[[nine]]", None),
        (mt_bench.rating, "", None),
        (longbench_chat.rating, "[[2]] [[9]]", 9),
        (longbench_chat.rating, "[[rating: 6]]", 6),
        (longbench_chat.rating, "[[100]]", None),
        (longbench_chat.rating, "[7]", None),
        (longbench_chat.rating, "[[]] [[good]]", None),
    ],
)
def test_ratings(rating, reply, value):
    assert rating(reply) == value


def test_replies_without_rating_are_named_counted_and_in_no_mean(evaluated, server, capsys):
    server.says = lambda prompt: "I like it" if "111" in prompt or "Rate: Tell of boat 81" in prompt else "[[6]]"
    scores = evaluated.scores("mt_bench")
    assert scores.unscored == 3
    assert {sample.id: sample.parts for sample in scores.samples}["81"] == {"turn 2": 0.6}
    assert {sample.id for sample in scores.samples} == {"81", "82", "101", "121"}
    assert {sample.score for sample in scores.samples} == {0.6}
    said = capsys.readouterr().err
    assert "strict gave no rating to question 81 turn 1, 111 turn 1, 111 turn 2; not in the mean" in said
    assert len(server.judged) == 10
    evaluated.scores("mt_bench")
    assert len(server.judged) == 10, "with temperature 0 the reply would be the same"


def test_a_judge_that_never_rates_is_refused(evaluated, server):
    server.says = lambda prompt: "\x1b[2JI would rather not"
    with pytest.raises(InputError, match=r"none of 10 replies of the judge strict holds a rating.*rather not"):
        evaluated.scores("mt_bench")


def test_everything_said_is_kept(evaluated, server):
    evaluated.scores("mt_bench")
    rows = [row for _, row in lines(evaluated.output / "judgements")]
    row = next(row for row in rows if (row["question_id"], row["turn"]) == (101, 2))
    assert row["questions"] == ["Tell of boat 101.", "And of lamp 101?"]
    assert row["answers"] == ["101.", "101?"]
    assert (row["judgment"], row["score"], row["judge"]) == ("It is good. [[7]]", 7.0, "strict")
    assert (row["model"], row["category"], row["date"]) == ("after", "reasoning", date.today().isoformat())
    assert row["judge_server"]["model"] == "strict-2026"
    assert re.fullmatch("[0-9a-f]{64}", row["prompt_sha256"])
    transcripts = lines(evaluated.output / "transcripts" / "mt_bench")
    assert transcripts[1]["question_id"] == 101
    assert transcripts[1]["choices"] == [{"index": 0, "turns": ["101.", "101?"]}]


def test_documents_are_in_no_transcript(evaluated):
    evaluated.scores("longbench_chat")
    kept = [path for name in ("judgements", "transcripts") for path in (evaluated.output / name).rglob("*.jsonl")]
    assert len(kept) == 2
    assert all("Where is the boat?" in path.read_text() and "the river" not in path.read_text() for path in kept)


def test_killed_ten_times_it_asks_nothing_twice(evaluated, server, engine, data, tmp_path, judge):
    """Killed while a line of the answers or of the ratings is written, at another place each time."""
    server.says = lambda prompt: f"[[{len(prompt) % 10 + 1}]]"
    whole = evaluated.scores("mt_bench")
    prompts, texts = server.judged[:], [text for batch in engine.asked for text in batch]
    server.bodies.clear()
    engine.asked.clear()
    broken = Evaluated(tmp_path / "broken", data, judge(judge_concurrency=1), engine)
    for number in range(10):
        server.faults.extend([Fault(), Fault(status=400)])  # one more rating, then the end
        if number < 9:
            with pytest.raises(InputError):
                broken.scores("mt_bench")
        for file in broken.output.glob("*/*.jsonl"):
            file.write_bytes(file.read_bytes() + b'["half of a li')
    server.faults.clear()
    assert broken.scores("mt_bench") == whole
    assert sorted(text for batch in engine.asked for text in batch) == sorted(texts)
    refused = 9
    assert len(server.judged) == len(prompts) + refused
    assert sorted(set(server.judged)) == sorted(prompts)


def test_the_same_answer_is_rated_once_for_both_models(evaluated, server, engine, data):
    evaluated.scores("mt_bench")
    twin = Evaluated(evaluated.output, data, evaluated.judge, engine, label="before")
    assert twin.scores("mt_bench").samples == evaluated.scores("mt_bench").samples
    assert len(server.judged) == 10


def test_another_judge_rates_anew(evaluated, server, engine, data, judge):
    evaluated.scores("mt_bench")
    server.says = lambda prompt: "[[1]]"
    other = Evaluated(evaluated.output, data, judge(judge_model="lenient"), engine)
    scores = other.scores("mt_bench")
    assert {sample.score for sample in scores.samples} == {0.1}
    assert scores.judge.name == "lenient"


def test_few_questions_are_of_all_categories(evaluated):
    assert [own.id for own in evaluated.task("mt_bench", samples=4).dialogues] == ["81", "101", "111", "121"]


def test_a_long_document_is_cut_in_the_middle_and_counted(evaluated):
    whole = evaluated.task("longbench_chat")
    assert whole.shortened == 0
    size = most_tokens(evaluated.prompts("longbench_chat"))
    for room in (size - 1, size - 30, size - 60):
        task = evaluated.task("longbench_chat", max_length=room)
        prompts = evaluated.prompts("longbench_chat", max_length=room)
        assert task.shortened >= 1
        assert room - 8 <= most_tokens(prompts) <= room
        ends = [own.turns[0] for own in task.dialogues]
        assert all(text.startswith("the river") for text in ends)
        assert ends[0].endswith("Where is the boat?")


def test_what_does_not_fit_is_refused_or_dropped(evaluated, data):
    """With answers at their longest: the second turn reads the first answer."""
    longest = most_tokens(evaluated.prompts("mt_bench"))
    evaluated.prompts("mt_bench", max_length=longest)
    with pytest.raises(InputError, match=rf"question 101 takes up to {longest} tokens .*reads {longest - 1}"):
        evaluated.prompts("mt_bench", max_length=longest - 1)
    kept = evaluated.prompts("mt_bench", max_length=longest - 1, drop=True)
    assert (kept.dropped, [own.id for own in kept.task.dialogues]) == (3, ["81", "82"])
    with pytest.raises(InputError, match="none of 5 questions fits"):
        evaluated.prompts("mt_bench", max_length=30, drop=True)


def test_answers_that_grow_when_they_are_read_are_refused_or_dropped(evaluated, engine):
    """Text of a weak model may have more tokens than it was written with: here 60 instead of at most 20."""
    room = most_tokens(evaluated.prompts("mt_bench"))
    engine.answer = lambda prompt: "the " * 60 if "boat 81." in prompt else "the"
    with pytest.raises(InputError, match=r"question 81 takes \d+ tokens with the answers so far.*--too-long drop"):
        evaluated.scores("mt_bench", max_length=room)
    scores = evaluated.scores("mt_bench", max_length=room, drop=True)
    assert (scores.dropped, {own.id for own in scores.samples}) == (1, {"82", "101", "111", "121"})
    engine.answer = lambda prompt: "the " * 60
    with pytest.raises(InputError, match="no question fits"):
        Evaluated(evaluated.output / "2", evaluated.data, evaluated.judge, engine).scores(
            "mt_bench", max_length=room, drop=True
        )


def test_what_is_left_to_ask_follows_the_answers(evaluated, engine):
    """Before, second turns count with first answers at their longest; after, all turns are as they were asked."""
    before = evaluated.prompts("mt_bench")
    assert len(before.distinct) == len(before.computed) == 10
    evaluated.scores("mt_bench")
    after = evaluated.prompts("mt_bench")
    assert after.computed == []
    assert all(key in evaluated.model().answers for key in after.distinct)
    saved = [sum(one.prompt_tokens for one in prompts.asked) for prompts in (before, after)]
    read = sum(len(TOKENIZER(own.answers[0]).input_ids) for own in after.answer(evaluated.model()))
    assert saved[0] - saved[1] == pytest.approx(5 * 20 - read, abs=10)


def test_system_prompt_is_in_front_of_every_turn(evaluated, engine):
    evaluated.scores("mt_bench", system_prompt="Speak of boats only.")
    assert all("Speak of boats only." in text for batch in engine.asked for text in batch)


def test_price_is_that_of_what_is_sent(evaluated, server):
    """With empty answers, and with answers of as many tokens as they may have."""
    settings = JudgeSettings(judge_model="strict", judge_price=(2.0, 10.0), judge_max_tokens=100)

    asked = evaluated.prompts("mt_bench")
    price = judgements.price(asked, settings, lambda text: len(TOKENIZER.tokenize(text)))
    for words, expected in (("", price.least_read), ("the " * 20, price.most_read)):
        server.bodies.clear()
        own = Evaluated(evaluated.output / f"{len(words)}", evaluated.data, evaluated.judge, None)
        transcripts = [dialogues.Transcript(dialogue, [], [words.strip()] * 2) for dialogue in asked.task.dialogues]
        judgements.judge_answers(asked, transcripts, own.judge, own.output, "x")
        sent = sum(
            len(TOKENIZER.tokenize(message["content"])) for body in server.bodies for message in body["messages"]
        )
        assert expected == pytest.approx(sent, rel=0.02)
    assert (price.judgements, price.most_written) == (10, 1000)
    low, high = price.least_read * 2e-6, price.most_read * 2e-6 + 0.01
    assert "10 judgements by strict" in price.describe(settings)
    assert price.describe(settings).endswith(f": {low:,.2f} to {high:,.2f} at --judge-price")
    assert "judge-price" not in price.describe(JudgeSettings())


def change_row(path, number, **fields):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number] = {name: value for name, value in (rows[number] | fields).items() if value != "gone"}
    write_lines(path, rows)


def change_case(path, number, **fields):
    rows = json.loads(path.read_text())
    rows[number] |= fields
    path.write_text(json.dumps(rows))


Q, P, R = "mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl"
MT_FAULTS = {
    "no questions": (Q, lambda path: path.unlink(), r"reads .*question.jsonl, which does not exist"),
    "no reference answers": (R, lambda path: path.unlink(), "should hold gpt-4.jsonl"),
    "empty": (Q, lambda path: path.write_text(""), "holds no question"),
    "no JSON": (Q, lambda path: path.write_text("{}\n{'"), "row 1: field 'question_id'|row 2 is not readable"),
    "an id missing": (
        Q,
        lambda path: change_row(path, 2, question_id="gone"),
        "row 3: .*'question_id' is missing|row 3",
    ),
    "three turns": (Q, lambda path: change_row(path, 1, turns=["a", "b", "c"]), "row 2: field 'turns' .* not 3"),
    "turns as text": (Q, lambda path: change_row(path, 0, turns="a"), "row 1: field 'turns' should be a list"),
    "an id twice": (Q, lambda path: change_row(path, 3, question_id=81), "row 4: .* question_id 81 too"),
    "reference of one turn": (
        R,
        lambda path: change_row(path, 0, choices=[{"turns": ["a"]}]),
        "question.jsonl: row 3: .* reference, and the reference answers have 1 of 2 turns for question_id 101",
    ),
    "no choice": (R, lambda path: change_row(path, 0, choices=[]), "gpt-4.jsonl: row 1: field 'choices'"),
    "a prompt missing": (P, lambda path: change_row(path, 3, name="other"), "no prompt 'single-math-v1-multi-turn'"),
    "a place missing": (
        P,
        lambda path: change_row(path, 0, prompt_template="{question}"),
        "the template of single-v1 has places for question, where answer, question are filled in",
    ),
    "a place unknown": (P, lambda path: change_row(path, 0, prompt_template="{question.x} {answer}"), "question.x"),
    "a form": (P, lambda path: change_row(path, 0, prompt_template="{question:>9} {answer}"), "how to write question"),
    "braces": (P, lambda path: change_row(path, 0, prompt_template="{question"), "single-v1 is no template"),
}
DIRECTORY = "LongBench_Chat/"
CHAT_FAULTS = {
    "no cases": ("test_cases.json", lambda path: path.unlink(), "which does not exist"),
    "no program": ("eval.py", lambda path: path.unlink(), "eval.py, which does not exist"),
    "no list": ("test_cases.json", lambda path: path.write_text("{}"), "list of JSON objects"),
    "idx beyond": ("test_cases.json", lambda path: change_case(path, 1, idx=4), "row 2: idx 4 is none of the 3 rows"),
    "answer a number": ("test_cases.json", lambda path: change_case(path, 2, answer=3), "row 3: field 'answer'"),
    "shots flat": ("few_shots.json", lambda path: path.write_text("[{}]"), "list of lists"),
    "shot without score": (
        "few_shots.json",
        lambda path: path.write_text('[[{"answer": "a"}]]'),
        "few_shots.json: row 1",
    ),
    "too few places": ("prompt_fs.txt", lambda path: path.write_text("{} {} {}"), "7 places .* it has 3"),
    "names": ("prompt_fs.txt", lambda path: path.write_text("{a} {} {} {} {} {} {}"), "7 places"),
    "not UTF-8": ("prompt_fs.txt", lambda path: path.write_bytes(b"\xff"), "prompt_fs.txt cannot be read"),
    "no system prompt": ("eval.py", lambda path: path.write_text("system_prompt = f()"), "sets no system_prompt"),
    "no Python": ("eval.py", lambda path: path.write_text("def"), "eval.py is no Python program"),
    "too deep": ("eval.py", lambda path: path.write_text("-" * 99_999 + "1"), "eval.py is no Python program"),
}
FAULTS = [("mt_bench", *fault) for fault in MT_FAULTS.values()] + [
    ("longbench_chat", DIRECTORY + name, *fault) for name, *fault in CHAT_FAULTS.values()
]


@pytest.mark.parametrize(("name", "file", "damage", "words"), FAULTS, ids=[*MT_FAULTS, *CHAT_FAULTS])
def test_files_at_fault(evaluated, data, server, name, file, damage, words):
    damage(data / file)
    with pytest.raises(InputError, match=words) as caught:
        evaluated.task(name)
    assert "\n" not in str(caught.value)
    assert not server.bodies
