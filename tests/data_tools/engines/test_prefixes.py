"""Requests that begin alike: the tree, and an engine that computes shared beginnings once."""

import random
from dataclasses import replace

import numpy as np
import pytest
from support.tiny_models import save_tiny

from nemo_longpo.data_tools.engines import prefixes
from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.engines.hf_engine import TransformersEngine
from nemo_longpo.data_tools.settings import EngineSettings, TransformersSettings

pytestmark = pytest.mark.slow  # models of three families compute everything twice


def ignore(_):
    pass


DRAW = random.Random(0)


def draw(length):
    return [DRAW.randrange(20, 300) for _ in range(length)]


BOOKS = [draw(900), draw(700)]
CHAPTER = [*BOOKS[0], *draw(600)]
# Three questions on a book, two on a longer piece of it, three on another book, and two alone: in no order.
SEQUENCES = [
    [*BOOKS[0], *draw(40)],
    draw(300),
    [*CHAPTER, *draw(9)],
    [*BOOKS[1], *draw(12)],
    [*BOOKS[0], *draw(7)],
    [*BOOKS[1], *draw(30)],
    [*CHAPTER, *draw(20)],
    draw(50),
    [*BOOKS[0], *draw(25)],
    [*BOOKS[1], *draw(1)],
]
LIMITS = [len(sequence) - 1 for sequence in SEQUENCES]
GREEDY = Sampling(max_new_tokens=6, stop_ids=frozenset())


def test_questions_on_one_document_are_one_branch():
    tree = prefixes.plan(SEQUENCES, LIMITS)
    assert (tree.length, tree.own) == (0, [1, 7])
    book, other = tree.inner
    assert (book.length, book.own, other.length, other.own) == (900, [0, 4, 8], 700, [3, 5, 9])
    assert [(inner.length, inner.own) for inner in book.inner] == [(1500, [2, 6])]
    segments = prefixes.segments(SEQUENCES, LIMITS)
    assert len(segments) == 13
    assert {(0, 900), (900, 1500), (0, 700), (0, 300)} <= set(segments)
    assert sum(end - start for start, end in segments) == sum(map(len, SEQUENCES)) - 4 * 900 - 600 - 2 * 700


def test_what_is_not_worth_a_pass_is_not_shared():
    assert prefixes.plan([[1, 2, *draw(500)] for _ in range(100)], [400] * 100).inner == []
    assert prefixes.plan([[*BOOKS[1], *draw(prefixes.LONGEST_REST + 1)] for _ in range(3)], [9999] * 3).inner == []


def test_choices_share_their_context_but_not_its_last_token():
    """The last token of the context predicts the first one of each choice."""
    tree = prefixes.plan([[*BOOKS[0], choice] for choice in (30, 31, 32, 33)], [899] * 4)
    assert [(branch.length, branch.own) for branch in tree.inner] == [(899, [0, 1, 2, 3])]


def test_a_request_that_is_the_beginning_of_others():
    (branch,) = prefixes.plan([BOOKS[0], BOOKS[0], [*BOOKS[0], 5]], [899, 899, 900]).inner
    assert (branch.length, sorted(branch.members())) == (899, [0, 1, 2])


@pytest.fixture(scope="module", params=["mistral", "qwen2"])
def engines(request, tmp_path_factory):
    """Without and with shared beginnings."""
    directory = save_tiny(tmp_path_factory.mktemp("engine"), request.param)
    settings = EngineSettings(), TransformersSettings(batch_tokens=4000)
    return TransformersEngine(directory, *settings), TransformersEngine(directory, *settings, share_prefixes=True)


def test_answers_are_those_without_sharing(engines):
    plain, sharing = engines
    used = []
    found = sharing.generate(SEQUENCES, GREEDY, [0] * 10, used.append)
    assert found == plain.generate(SEQUENCES, GREEDY, [0] * 10, ignore)
    assert sum(usage.prompt_tokens for usage in used) == sum(map(len, SEQUENCES))
    assert sum(usage.cached_prompt_tokens for usage in used) == 4 * 900 + 600 + 2 * 700
    assert sum(usage.requests for usage in used) == 10


def test_log_probs_are_those_without_sharing(engines):
    plain, sharing = engines
    spans = [[(len(sequence) - 1, len(sequence))] for sequence in SEQUENCES]
    spans[0] = [(900, 905), (930, 940)]
    spans[5] = [(3, 4), (690, 730)]  # so the book before is not shared with it
    used = []
    found = sharing.score(SEQUENCES, spans, used.append)
    for own, expected in zip(found, plain.score(SEQUENCES, spans, ignore), strict=True):
        for one, other in zip(own, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert sum(usage.cached_prompt_tokens for usage in used) == 4 * 899 + 601


def test_what_is_wanted_does_not_change_its_bits(engines):
    """Each finished request is reported once, in bits that do not depend on what else was asked."""
    _, sharing = engines
    spans = [[(len(sequence) - 1, len(sequence))] for sequence in SEQUENCES]
    whole = sharing.score(SEQUENCES, spans, ignore)
    answers = sharing.generate(SEQUENCES, GREEDY, [0] * 10, ignore)
    for wanted in ([4], [9, 6], [1, 2, 3, 8], range(10)):
        reported, used = {}, []
        found = sharing.score(SEQUENCES, spans, used.append, reported.__setitem__, wanted)
        assert [row[0].tobytes() for row in found] == [whole[index][0].tobytes() for index in sorted(wanted)]
        assert {index: row[0].tobytes() for index, row in reported.items()} == {
            index: whole[index][0].tobytes() for index in wanted
        }
        assert sum(usage.requests for usage in used) == len(wanted)
        reported.clear()
        sharing.generate(SEQUENCES, GREEDY, [0] * 10, ignore, reported.__setitem__, wanted)
        assert reported == {index: answers[index] for index in wanted}


def test_an_answer_is_reported_when_it_ends(engines):
    """Not when its batch does: a kill then loses only what is being written."""
    batch = [SEQUENCES[index] for index in (0, 4, 8)]
    whole = [found.ids for found in engines[0].generate(batch, replace(GREEDY, max_new_tokens=30), [0] * 3, ignore)]

    def ends(token):
        return [ids.index(token) if token in ids else 30 for ids in whole]

    stop = next(token for ids in whole for token in ids if ends(token)[0] > min(ends(token)))
    expected = sorted(enumerate(ends(stop)), key=lambda entry: entry[1])
    for engine in engines:
        order = []

        def note(at, found, order=order):
            order.append((at, len(found.ids)))

        engine.generate(batch, Sampling(max_new_tokens=30, stop_ids=frozenset({stop})), [0] * 3, ignore, note)
        assert order == expected


def test_a_sliding_window_shares_nothing(tmp_path):
    """It would count the padding in the middle."""
    directory = save_tiny(tmp_path, "mistral", sliding_window=256)
    settings = EngineSettings(), TransformersSettings(batch_tokens=4000)
    used = []
    found = TransformersEngine(directory, *settings, share_prefixes=True).generate(
        SEQUENCES, GREEDY, [0] * 10, used.append
    )
    assert found == TransformersEngine(directory, *settings).generate(SEQUENCES, GREEDY, [0] * 10, ignore)
    assert not any(usage.cached_prompt_tokens for usage in used)
