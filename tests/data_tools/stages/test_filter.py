"""Every reason to leave out a turn, with the nearest case that is kept and the setting that disables it."""

import json

import pytest

from nemo_longpo.data_tools.pairs import Turn
from nemo_longpo.data_tools.prompts import Prompts
from nemo_longpo.data_tools.settings import FilterSettings
from nemo_longpo.data_tools.stages.filter import drop_reason
from nemo_longpo.errors import InputError

CHUNK = " ".join(f"On day {n} the captain of boat {n * 7} wrote letter {n * n} to harbour {n + 3}." for n in range(40))
LONG = " ".join(f"word{n}" for n in range(200))
CHINESE = "".join(chr(0x4E00 + 7 * n) for n in range(90))
SORRY = "I'm sorry, but I can't answer that."
LOOP = "Then he went home again. " * 10


def reason(raw=None, *, chunk=CHUNK, instruction="Who wrote?", chosen="The captain.", rejected="A boy.", **settings):
    turn = Turn(
        chunk=chunk,
        instruction=instruction,
        chosen=chosen,
        rejected=rejected,
        chosen_token_ids=(raw or {}).get("chosen_token_ids"),
        rejected_token_ids=None,
    )
    bare = Prompts().without_lead_in(instruction)
    return drop_reason(turn, raw or {}, f"{CHUNK} {LONG}", FilterSettings(**settings), bare)


def changed(text, count):
    """`count` of the words replaced, far from each other."""
    words = text.split()
    for index in range(count):
        words[10 + 40 * index] = f"other{index}"
    return " ".join(words)


def verbatim(words):
    return " ".join(CHUNK.split()[:words])


@pytest.mark.parametrize(
    ("expected", "hit", "near_miss", "off"),
    [
        ("empty", {"chosen": " \n"}, {"chosen": "."}, None),
        ("empty", {"rejected": " "}, {"rejected": "?"}, None),
        ("empty", {"raw": {"chosen_token_ids": []}}, {"raw": {"chosen_token_ids": [5]}}, None),
        ("thought", {"rejected": "<think>\nHm.\n</think>\n\nA boy."}, {"rejected": "A <think> tag, and a boy."}, None),
        ("thought", {"chosen": "Hm.\n</think>\n\nThe captain."}, {"chosen": "</thin>"}, None),
        ("thought", {"chosen": " [THINK]Hm.[/THINK]The captain."}, {"chosen": "[HINT]The captain."}, None),
        ("thought", {"chosen": "<think>Hm.", "raw": {"chosen_finish_reason": "length"}}, {"chosen": "Hm."}, None),
        ("rewritten", {"raw": {"rejected_rewritten": True}}, {"raw": {"rejected_rewritten": False}}, None),
        ("truncated", {"raw": {"chosen_finish_reason": "length"}}, {"raw": {"chosen_finish_reason": "stop"}}, None),
        (
            "truncated",
            {"raw": {"rejected_finish_reason": "length"}},
            {"raw": {"rejected_finish_reason": None}},
            {"keep_truncated": "rejected"},
        ),
        (
            "truncated",
            {"raw": {"chosen_finish_reason": "length"}, "keep_truncated": "rejected"},
            {"raw": {"chosen_finish_reason": "stop"}, "keep_truncated": "rejected"},
            None,
        ),
        (
            "identical",
            {"chosen": "A boy. "},
            {"chosen": "A boy!"},
            {"drop_identical": False, "max_similarity": 1.0},
        ),
        (
            "near_identical",
            {"chosen": LONG, "rejected": changed(LONG, 1)},
            {"chosen": LONG, "rejected": changed(LONG, 2)},
            {"max_similarity": 1.0},
        ),
        ("near_identical", {"chosen": "A  BOY."}, {"chosen": "A girl."}, {"max_similarity": 1.0}),
        ("refusal", {"chosen": SORRY}, {"rejected": SORRY}, {"drop_refusals": "none"}),
        (
            "refusal",
            {"rejected": SORRY, "drop_refusals": "both"},
            {"rejected": f"The captain of the boat wrote. {SORRY}", "drop_refusals": "both", "refusal_window": 30},
            None,
        ),
        ("loop", {"chosen": LOOP}, {"chosen": LOOP[: len(LOOP) // 2]}, {"drop_loops": "none"}),
        ("loop", {"rejected": LOOP}, {"rejected": LOOP, "drop_loops": "chosen"}, {"drop_loops": "none"}),
        ("loop", {"chosen": LOOP, "loop_words": 50}, {"chosen": LOOP, "loop_words": 51, "min_compressed": 0.0}, None),
        (
            "loop",
            {"chosen": "\n".join(f"{n}. The boat is red and the clock is old." for n in range(40))},
            {
                "chosen": "\n".join(
                    f"{n}. Boat {n * 31 % 97} is no. {n * 57 % 89} in {n * 7919 % 997}." for n in range(40)
                )
            },
            {"min_compressed": 0.0},
        ),
        ("copy", {"chosen": verbatim(90)}, {"chosen": verbatim(60)}, {"drop_copies": "none"}),
        ("copy", {"chosen": verbatim(90)}, {"chosen": f"{verbatim(90)} {LONG}"}, {"copied_words": 120}),
        (
            "copy",
            {"chosen": CHINESE, "chunk": CHINESE},
            {"chosen": f"{CHINESE}{CHINESE[::-1]}", "chunk": CHINESE},
            None,
        ),
        ("copy", {"rejected": LONG, "drop_copies": "both"}, {"rejected": LONG}, None),
        ("copy", {"chosen": "who wrote?"}, {"chosen": "Bob wrote."}, {"drop_copies": "none"}),
        (
            "copy",
            {"chosen": LONG, "instruction": f"Explain: {LONG}"},
            {"chosen": LONG[:300], "instruction": f"Explain: {LONG[:300]} {changed(LONG, 4)[300:]}"},
            None,
        ),
    ],
)
def test_reasons(expected, hit, near_miss, off):
    assert reason(**hit) == expected
    assert reason(**near_miss) is None
    if off:
        assert reason(**(hit | off)) is None


@pytest.mark.parametrize("lead_in", ["", f"{Prompts().lead_ins[0]} ", f"{Prompts().lead_ins[-1]} "])
def test_copied_instruction_with_lead_in(lead_in):
    asked = "Who repaired the old clock?"
    for chosen in (asked, f"{lead_in}{asked}", "who repaired the old clock", f"“{asked}”"):
        assert reason(instruction=f"{lead_in}{asked}", chosen=chosen) == "copy", chosen
    for chosen in ("The old clock was repaired by Ann.", "Ann repaired it.", "the old clock", f"{asked} Ann, in 1984."):
        assert reason(instruction=f"{lead_in}{asked}", chosen=chosen) is None, chosen


def test_copy_of_most_of_the_instruction():
    asked = "Sum up what happened to the old boat in the winter, and compare the two letters."
    assert reason(instruction=asked, chosen="Sum up what happened to the old boat in the winter.") == "copy"
    assert reason(instruction=asked, chosen="Compare the two letters.") is None  # too little of it to be sure
    choice = "Did the captain leave by boat, or stay in the harbour?"
    assert reason(instruction=choice, chosen="stay in the harbour") is None


LOOPING = {"raw": {"rejected_finish_reason": "length"}, "rejected": LOOP}


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("empty", "loop", {"chosen": "", "rejected": LOOP}),
        ("loop", "truncated", LOOPING),
        ("loop", "truncated", {"raw": {"chosen_finish_reason": "length"}, "chosen": LOOP}),
        ("loop", "identical", {"chosen": LOOP, "rejected": LOOP}),
        ("truncated", "identical", {"raw": {"chosen_finish_reason": "length"}, "rejected": "The captain."}),
        ("truncated", "refusal", {"raw": {"chosen_finish_reason": "length"}, "chosen": SORRY}),
        ("identical", "refusal", {"chosen": SORRY, "rejected": SORRY}),
        ("near_identical", "refusal", {"chosen": SORRY, "rejected": f"  {SORRY.upper()}"}),
        ("refusal", "copy", {"chosen": SORRY, "instruction": f"Translate: {SORRY}"}),
    ],
)
def test_first_of_two_reasons_is_counted(first, second, both):
    assert reason(**both) == first
    off = {"loop": {"drop_loops": "none"}, "near_identical": {"max_similarity": 1.0}}
    off |= {"identical": {"drop_identical": False, "max_similarity": 1.0}, "refusal": {"drop_refusals": "none"}}
    off |= {"truncated": {"raw": {}}, "empty": {"chosen": "A boy."}}
    assert reason(**(both | off[first])) == second


def test_allowed_loop_counts_as_truncated():
    assert reason(**LOOPING, drop_loops="chosen") == "truncated"
    assert reason(**LOOPING, drop_loops="chosen", keep_truncated="rejected") is None
    assert reason(**LOOPING, keep_truncated="rejected") == "loop"


def test_short_answers_in_prompt_words_are_kept():
    instruction = "Is the boat in the harbour old, or is it new?"
    for chosen in ("It is new", "The boat in the harbour is old.", "On day 3 the captain of boat 21 wrote letter 9"):
        assert reason(instruction=instruction, chosen=chosen) is None


@pytest.fixture
def run(longpo, tmp_path):
    """Filter pairs given as {doc_id: turns}; returns (report, {doc_id: kept turns})."""

    def run_filter(documents, *flags):
        path, output = tmp_path / "pairs.jsonl", tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        records = [{"doc_id": name, "document": CHUNK, "turns": turns} for name, turns in documents.items()]
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        status, out, err = longpo("filter", "--input", path, "--output", output, "--json", *flags)
        if status:
            raise InputError(err)
        kept = [json.loads(line) for part in sorted(output.glob("part*")) for line in part.read_text().splitlines()]
        return json.loads(out)["report"], {record["doc_id"]: record["turns"] for record in kept}

    return run_filter


def turn(instruction, **changes):
    return {"chunk": "A boat.", "instruction": instruction, "chosen": "Bob did.", "rejected": "Ann did."} | changes


ASKED = "What did the captain of the old boat write to his daughter in the last letter of that winter?"


def test_instructions_that_were_asked_before(run):
    turns = [
        turn(ASKED),
        turn(ASKED.replace("that", "the")),
        turn(f"{Prompts().lead_ins[0]} {ASKED}"),
        turn(ASKED.replace("captain", "boy").replace("daughter", "sister")),
        turn("Who repaired the clock?"),
        turn("Who repaired the boat?"),
        turn("谁修好了那座旧钟？"),
        turn("谁修好了那座旧钟？", chosen="他"),
    ]
    report, kept = run({"a": turns, "b": [turn(ASKED)]}, "--max-instruction-similarity", 0.8)
    assert kept == {"a": [turns[0], *turns[3:7]], "b": [turn(ASKED)]}
    assert report["dropped_repeated_instruction"] == 3
    report, kept = run({"a": turns}, "--max-instruction-similarity", 1)
    assert kept == {"a": turns}


def test_repetition_with_lead_in(run):
    turns = [turn("Who ran?"), turn(f"{Prompts().lead_ins[0]} Who ran?")]
    assert run({"a": turns})[1] == {"a": turns[:1]}


def test_only_kept_turns_count_as_asked(run):
    _, kept = run({"a": [turn(ASKED, chosen=SORRY), turn(ASKED), turn(ASKED, chosen="Ed did.")]})
    assert kept == {"a": [turn(ASKED)]}


def test_documents_that_lose_all_turns_are_counted(run):
    report, kept = run({"a": [turn("Who?", chosen="")], "b": [turn("Who?")], "c": [turn("Who?", chosen=SORRY)] * 2})
    assert list(kept) == ["b"]
    assert report == {
        "documents_in": 3,
        "documents_out": 1,
        "documents_without_turns": 2,
        "dropped_empty": 1,
        "dropped_refusal": 2,
        "turns_in": 4,
        "turns_out": 1,
    }


def test_error_for_no_turns_names_the_reasons(run):
    message = (
        r"none of the 2 turns is left \(dropped_empty 1, dropped_refusal 1\); look at the answers in .*pairs.jsonl"
    )
    with pytest.raises(InputError, match=message):
        run({"a": [turn("Who?", chosen="")], "c": [turn("Who?", chosen=SORRY)]})


@pytest.mark.slow
def test_several_workers_write_the_same_bytes(longpo, tmp_path):
    path = tmp_path / "pairs.jsonl"
    records = [
        {"doc_id": f"d{n}", "document": CHUNK, "turns": [turn("Who?"), turn("Who?", chosen=f"Number {n}.")]}
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    for workers in (1, 2):
        words = ("--output", tmp_path / f"by{workers}", "--num-workers", workers, "--part-size", 1)
        assert longpo("filter", "--input", path, *words)[0] == 0
    for file in (tmp_path / "by1").iterdir():
        assert (tmp_path / "by2" / file.name).read_bytes() == file.read_bytes()


def test_help_shows_every_setting(longpo, capsys):
    with pytest.raises(SystemExit):
        longpo("filter", "--help")
    shown = capsys.readouterr().out
    for name in FilterSettings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-similarity", 1.5), "max_similarity 1.5 must be at most 1"),
        (("--loop-words", 0), "loop_words 0 must be at least 4"),
        (("--copied-share", 0), "copied_share 0.0 must be above 0"),
    ],
)
def test_settings_out_of_range(run, flags, message):
    with pytest.raises(InputError, match=message):
        run({"a": [turn("Who?")]}, *flags)
