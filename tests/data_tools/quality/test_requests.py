"""The gate on instructions, over a labelled collection of what models write."""

from collections import Counter

import pytest
from instruction_corpus import ANSWERS, CLOCK, ITEMS

from nemo_longpo.data_tools.chat.prompts import Prompts
from nemo_longpo.data_tools.quality.requests import Wording, read_requests

WORDING = Wording(Prompts().request_instructions("", 4))


def read(answer, *, count=4, chunk=CLOCK, wording=WORDING, truncated=False):
    return read_requests(answer, count, chunk=chunk, wording=wording, truncated=truncated)


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
