"""The filter of instructions on a labelled collection of real answers."""

from collections import Counter

import pytest
from support.instruction_corpus import ANSWERS, CLOCK, ITEMS, PLANTS, SECOND

from nemo_longpo.data_tools.prompts import Prompts
from nemo_longpo.data_tools.quality.usable_requests import LONGEST_WORDS, Wording, read_requests

WORDING = Wording(Prompts().request_instructions("", 4))


def read(answer, *, count=4, chunk=CLOCK, wording=WORDING, truncated=False):
    return read_requests(answer, count, chunk, wording, truncated=truncated)


@pytest.mark.parametrize(("chunk", "item", "request_", "reason"), ITEMS, ids=[item for _, item, *_ in ITEMS])
def test_items(chunk, item, request_, reason):
    pool = read(f"1. Who is the first to appear?\n2. {item}", chunk=chunk)
    first = "Who is the first to appear?"
    assert pool.requests == ([first] if request_ is None else [first, request_])
    assert [found for found, _ in pool.rejected] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("chunk", "answer", "requests", "left_out"),
    [row[1:] for row in ANSWERS],
    ids=[row[0] for row in ANSWERS],
)
def test_answers(chunk, answer, requests, left_out):
    pool = read(answer, chunk=chunk, truncated=answer.endswith("coun"))
    assert pool.requests == requests
    assert pool.counts() == Counter({f"rejected_{reason}": count for reason, count in left_out.items()})


@pytest.mark.parametrize("line", SECOND)
def test_second_collection_of_items(line):
    usable, item = line[0] == "+", line[2:]
    pool = read(f"1. Who is the first to appear?\n2. {item}", chunk=PLANTS)
    assert pool.requests[1:] == ([item] if usable else [])


@pytest.mark.parametrize("chunk", [CLOCK, ""])
def test_echoes_of_the_given_prompt(chunk):
    """Own words of the prompt are an echo in one wording, and a request like any other in another."""
    own = Wording("Write four riddles that a child of this village would solve with ease.")
    echo = "Write riddles that a child of this village would solve."
    assert read(echo, count=1, chunk=chunk, wording=own).counts() == {"rejected_prompt_echo": 1}
    assert read(echo, count=1, chunk=chunk).requests == [echo]
    short = Wording("Write a question.")
    assert read("Write a question.", count=1, wording=short).counts() == {"rejected_prompt_echo": 1}
    assert read("Write about the clock.", count=1, wording=short).requests == ["Write about the clock."]
    assert read("Who wept?", count=1, wording=Wording("")).requests == ["Who wept?"]


def test_length():
    request = "Explain why " + " ".join(f"w{number}" for number in range(LONGEST_WORDS - 2))
    assert read(request, count=1).requests == [request]
    assert read(f"{request} more", count=1).counts() == {"rejected_too_long": 1}
    chinese = "请说明" + "旧钟停了" * 29 + "。"
    assert read(chinese, count=1).requests == [chinese]
    assert read(chinese + "旧钟", count=1).counts() == {"rejected_too_long": 1}
