"""Faults of published documents are repaired, cut off, or refused by name."""

from copy import deepcopy
from functools import partial

import pytest
from support import published_faults as faults
from support.published_pairs import IGNORED, labelled_spans, published_row, text_pair
from support.tiny_models import tiny_tokenizer

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.published.conversation import Refused, template_ids
from nemo_longpo.data_tools.published.document import Limits, read_document

UNLIMITED = Limits(conversation=None, reference=10_000)


@pytest.fixture(scope="module", params=["mistral-v0.2", "qwen2.5"])
def chat(request):
    return ChatFormat(tiny_tokenizer(request.param))


@pytest.fixture(scope="module")
def template(chat):
    return template_ids(chat, len(chat.tokenizer))


@pytest.fixture
def pad(chat):
    tokenizer = chat.tokenizer
    return tokenizer.unk_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def test_clean_document(chat, template):
    pair = text_pair(1)
    row = published_row(chat, pair)
    document = read_document(row, template, UNLIMITED)
    assert (document.turns, document.turns_cut, document.repairs) == (3, 0, frozenset())
    assert document.fields["trunk_ids"] + document.fields["rejected_ids"] == row["rejected_input_ids"]
    trunk = len(document.fields["trunk_ids"])
    spans = [[start - trunk, end - trunk] for start, end in labelled_spans(row["chosen_labels"])]
    assert document.fields["chosen_spans"] == spans
    answers = [row["ref_chosen_input_ids"][turn][-(end - start) :] for turn, (start, end) in enumerate(spans)]
    prompts = document.fields["short_prompts"]
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    assert whole == row["ref_chosen_input_ids"]


REPAIRED = {
    faults.label_one_more: "labels_behind_answer",
    faults.label_behind_every_answer: "labels_behind_answer",
    faults.label_the_next_opening: "labels_behind_answer",
    faults.unlabel_ends: "end_of_turn_without_label",
    faults.label_behind_unlabelled_ends: "end_of_turn_without_label labels_behind_answer",
    faults.label_the_opening: "labels_before_answer",
    faults.double_the_start: "doubled_start",
    faults.pad_left: "padding",
    faults.pad_right: "padding",
    faults.pad_references: "padding",
    faults.pad_references_with_masks: "padding",
    faults.shift_all: "shifted_labels",
    faults.cut_shifted_labels: "label_lengths shifted_labels",
    faults.nest: "nesting",
    faults.lengthen_labels: "label_lengths",
    faults.ignore_an_answer: "answer_outside_nll",
    faults.add_a_reference: "surplus_references",
    faults.leave_a_question: "text_behind_last_answer",
}


@pytest.mark.parametrize("fault", REPAIRED, ids=lambda fault: fault.__name__)
def test_repaired(chat, template, pad, fault):
    clean = published_row(chat, text_pair(1))
    broken = deepcopy(clean)
    fault(broken, chat, pad)
    document = read_document(broken, template, UNLIMITED)
    assert document.fields == read_document(clean, template, UNLIMITED).fields
    assert document.repairs == set(REPAIRED[fault].split())
    assert document.turns_cut == 0


CUT = {
    faults.lose_a_reference: 1,
    faults.lose_a_prompt: 1,
    faults.lose_a_turn: 1,
    faults.cut_the_last_answer: 1,
    faults.empty_an_answer: 1,
    faults.change_a_reference: 1,
    faults.change_a_prompt: 1,
    faults.lose_a_turn_in_the_middle: 2,
}


@pytest.mark.parametrize("fault", CUT, ids=lambda fault: fault.__name__)
def test_last_turns_cut_off(chat, template, pad, fault):
    pair, kept = text_pair(1), 3 - CUT[fault]
    shorter = published_row(chat, pair | {"turns": pair["turns"][:kept]})
    broken = published_row(chat, pair)
    fault(broken, chat, pad)
    document = read_document(broken, template, UNLIMITED)
    assert document.fields == read_document(shorter, template, UNLIMITED).fields
    assert (document.turns, document.turns_cut) == (kept, CUT[fault])


def changed(name, make):
    """A fault in one column."""

    def fault(row, chat, pad):
        row[name] = make(row[name])

    return fault


REFUSED = [
    (faults.use_unknown_ids, "outside_vocabulary"),
    (faults.mask_inside, "padding_inside"),
    (faults.change_the_document, "beginnings_differ"),
    (faults.change_an_instruction, "instructions_differ"),
    (faults.end_a_turn_twice, "end_of_turn_within_answer"),
    (faults.put_a_special_token_inside, "special_token_within_answer"),
    (partial(faults.lose_a_reference, turn=1), "turn_without_reference"),
    (partial(faults.change_a_reference, turn=0), "turn_without_reference"),
    (partial(faults.empty_an_answer, turn=1), "empty_answer"),
    (changed("chosen_labels", lambda labels: [IGNORED] * len(labels)), "no_answer"),
    (changed("chosen_labels", lambda labels: [*labels, 5]), "label_lengths_differ"),
    (changed("chosen_labels", lambda labels: [7] * len(labels)), "labels_differ"),
    (changed("chosen_input_ids", lambda ids: [str(token) for token in ids]), "malformed"),
    (changed("ref_chosen_labels", lambda lists: lists[:-1]), "malformed"),
    (changed("ref_chosen_input_ids", lambda lists: None), "malformed"),
]


@pytest.mark.parametrize(("fault", "reason"), REFUSED)
def test_refused(chat, template, pad, fault, reason):
    row = published_row(chat, text_pair(1))
    fault(row, chat, pad)
    with pytest.raises(Refused) as refused:
        read_document(row, template, UNLIMITED)
    assert refused.value.reason == reason


def test_pad_token_inside_without_a_mask():
    """For models with a token that is only used for padding."""
    chat = ChatFormat(tiny_tokenizer("qwen2.5"))
    row = published_row(chat, text_pair(0))
    for name in ("chosen_input_ids", "chosen_lm_labels", "rejected_input_ids"):
        row[name][20] = chat.tokenizer.pad_token_id
    template = template_ids(chat, len(chat.tokenizer))
    with pytest.raises(Refused, match="pad token occurs within"):
        read_document(row, template, UNLIMITED)
    row["chosen_attention_mask"] = [1] * len(row["chosen_input_ids"])
    row["rejected_attention_mask"] = [1] * len(row["rejected_input_ids"])
    assert read_document(row, template, UNLIMITED).turns == 3


def test_limits(chat, template):
    row = published_row(chat, text_pair(1))
    longest = max(len(row[f"{branch}_input_ids"]) for branch in ("chosen", "rejected"))
    reference = max(len(ids) for branch in ("chosen", "rejected") for ids in row[f"ref_{branch}_input_ids"])
    assert read_document(row, template, Limits(longest, reference)).turns == 3
    with pytest.raises(Refused, match=f"{longest} tokens exceeds max_tokens {longest - 1}"):
        read_document(row, template, Limits(longest - 1, reference))
    with pytest.raises(Refused) as refused:
        read_document(row, template, Limits(None, 20))
    assert refused.value.reason == "reference_too_long"


def test_label_on_the_first_token_is_ignored(chat, template):
    """Nothing predicts it."""
    row = published_row(chat, text_pair(1))
    clean = read_document(row, template, UNLIMITED)
    row["chosen_lm_labels"][0] = row["chosen_input_ids"][0]
    assert read_document(row, template, UNLIMITED) == clean


def test_repeated_question(chat, template):
    """Two reference sequences with one prompt, each with its own answers."""
    pair = text_pair(1)
    pair["turns"][1] |= {name: pair["turns"][0][name] for name in ("chunk", "instruction")}
    pair["turns"][1]["chosen"] = "The old clock carries rain."
    document = read_document(published_row(chat, pair), template, UNLIMITED)
    assert (document.turns, document.repairs) == (3, frozenset())


def test_repeated_answers_can_be_ambiguous(chat, template, pad):
    pair = text_pair(1)
    pair["turns"][1] |= {name: pair["turns"][0][name] for name in ("chosen", "rejected")}
    row = published_row(chat, pair)
    first, second, _ = read_document(row, template, UNLIMITED).fields["short_prompts"]
    assert first != second
    faults.lose_a_reference(row, chat, pad, 0)
    with pytest.raises(Refused) as refused:
        read_document(row, template, UNLIMITED)
    assert refused.value.reason == "ambiguous_references"
