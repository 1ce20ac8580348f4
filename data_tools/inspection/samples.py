"""Which documents the page shows, and how one of them looks."""

import numpy as np

from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.validation import spans_to_mask

from .answers import answer_pair
from .markup import Html, element
from .measures import answer_ids, logp_sum
from .numbers import number, signed
from .similarity import similarity
from .token_text import TokenText

MOST_TURNS = 8  # of a document
CONTEXT_END = 160  # tokens at either end of a context or an instruction
CHUNK_END = 1024  # tokens at either end of a chunk
_LONGEST_ID = 120  # characters


def pick(margins: np.ndarray, count: int) -> list[tuple[str, int]]:
    """(what it stands for, index) of up to `count` documents, evenly spread over the ranks of their margins.

    The lowest margin comes first: that is where bad pairs are.
    """
    order = np.argsort(margins, kind="stable")
    last = min(count, len(order)) - 1
    places = [round(rank * (len(order) - 1) / last) if last else 0 for rank in range(last + 1)]
    return [(_standing(rank, last), int(order[place])) for rank, place in enumerate(places)]


def _standing(rank: int, last: int) -> str:
    if rank == 0:
        return "lowest margin"
    if rank == last:
        return "highest margin"
    return "median margin" if 2 * rank == last else f"{100 * rank / last:.0f} % of margins are lower"


def name_of(record: PairRecord) -> Html:
    """The document's id, cut where it is long, with its own writing direction."""
    long = len(record.doc_id) > _LONGEST_ID
    return element("bdi", record.doc_id[:_LONGEST_ID] + "…" * long)


def sample(anchor: str, standing: str, record: PairRecord, margin: float, text: TokenText) -> Html:
    """One document: its context, then turn by turn the chunk to unfold, the instruction and both answers."""
    trunk = len(record.trunk_ids)
    ignored = spans_to_mask(record.nll_ignore_spans, trunk + len(record.chosen_ids))
    facts = f"margin {signed(margin)} · turns {record.turns} · context {number(trunk)} tokens"
    turns = [_turn(record, turn, ignored, text) for turn in range(min(record.turns, MOST_TURNS))]
    if record.turns > MOST_TURNS:
        turns.append(_left_out(record.turns - MOST_TURNS, "more turns"))
    return element(
        "section",
        element("h3", name_of(record), element("span", standing, class_="standing")),
        element("p", facts, class_="facts"),
        element("h4", "Context, the first instruction at its end"),
        _passage(record.trunk_ids.tolist(), 0, trunk, ignored, CONTEXT_END, text),
        *turns,
        id=anchor,
        class_="sample",
        tabindex=-1,
    )


def _turn(record: PairRecord, turn: int, ignored: np.ndarray, text: TokenText) -> Html:
    chosen = answer_ids(record.chosen_ids, record.chosen_spans[turn])
    rejected = answer_ids(record.rejected_ids, record.rejected_spans[turn])
    logps = record.ref_chosen_logps[turn], record.ref_rejected_logps[turn]
    margin = logp_sum(logps[0]) - logp_sum(logps[1])
    facts = f"margin {signed(margin)} · similarity {number(similarity(chosen, rejected))}"
    children = [element("h4", f"Turn {turn + 1} ", element("span", facts, class_="facts"))]
    if record.chunk_spans is not None:
        children.append(_chunk(record.trunk_ids, record.chunk_spans[turn], ignored, text))
    if turn > 0:
        before, start = int(record.chosen_spans[turn - 1, 1]), int(record.chosen_spans[turn, 0])
        in_branch = ignored[len(record.trunk_ids) :]
        children.append(_passage(record.chosen_ids.tolist(), before, start, in_branch, CONTEXT_END, text))
    leads = (
        _before(record, record.chosen_ids, record.chosen_spans[turn]),
        _before(record, record.rejected_ids, record.rejected_spans[turn]),
    )
    return element("div", *children, answer_pair((chosen, rejected), logps, leads, text), class_="turn")


def _chunk(trunk: np.ndarray, span: np.ndarray, ignored: np.ndarray, text: TokenText) -> Html:
    """What the model had read when it wrote the chosen answer, to unfold."""
    start, end = span.tolist()
    if start == end:
        return element(
            "p", "The chosen answer was made from a chunk that is no stretch of the context.", class_="facts"
        )
    facts = f"{number(end - start)} tokens, from token {number(start + 1)} of the context"
    heading = element("summary", "Chunk behind the chosen answer ", element("span", facts, class_="facts"))
    passage = _passage(trunk.tolist(), start, end, ignored, CHUNK_END, text)
    return element("details", heading, passage, class_="chunk")


def _before(record: PairRecord, branch: np.ndarray, span: np.ndarray) -> list[int]:
    """The tokens in front of an answer."""
    return np.concatenate([record.trunk_ids[-CONTEXT_END:], branch[: span[0]]]).tolist()


def _passage(ids: list[int], start: int, end: int, ignored: np.ndarray, most: int, text: TokenText) -> Html:
    """ids[start:end] to read, with `most` tokens at either end; what the NLL leaves out (template text) is of class
    "template"."""
    parts: list[Html] = []
    shown = text.elided(ids, start, end, most, most)
    for place, (first, last) in enumerate(shown):
        if place:
            parts.append(_left_out(first - shown[0][1], "tokens"))
        parts += _runs(ids, first, last, ignored, text)
    return element("div", *parts, class_="passage", dir="auto")


def _left_out(count: int, what: str) -> Html:
    return element("span", f"… {number(count)} {what} not shown …", class_="elided", dir="ltr")


def _runs(ids: list[int], start: int, end: int, ignored: np.ndarray, text: TokenText) -> list[Html]:
    """Neighbouring tokens of the same kind as one element; line breaks of the template as signs, to save room."""
    runs: list[tuple[bool, str]] = []
    for group in text.groups(ids, start, end):
        template = bool(ignored[group.start])
        if runs and runs[-1][0] == template:
            runs[-1] = template, runs[-1][1] + group.text
        else:
            runs.append((template, group.text))
    return [
        element("bdi", words.replace("\n", "↵"), class_="template") if template else element("span", words)
        for template, words in runs
    ]
