"""Faults of published rows. Every fault changes a clean row in place."""

from support.published_pairs import IGNORED, labelled_spans, padded, published_row, text_pair


def shift(labels):
    return [*labels[1:], IGNORED]


def drop_turn(ids, labels, turn):
    """A conversation without the question and the answer of one turn (not the first)."""
    spans = labelled_spans(labels)
    start, end = spans[turn - 1][1], spans[turn][1]
    return ids[:start] + ids[end:], labels[:start] + labels[end:]


def change(row, name, make):
    row[name] = make(row[name])


def extend(row, names, ids, labels=None):
    for name in names:
        row[f"{name}_input_ids"] += ids
        row[f"{name}_labels"] += labels or [IGNORED] * len(ids)


def label_one_more(row, chat, pad):
    """Labels continue until the next user message."""
    closing = chat.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    extend(row, ["chosen"], closing, closing)
    row["chosen_lm_labels"] += closing


def label_behind_every_answer(row, chat, pad):
    """As where an answer lasts until the marker of the next user message: the template's text in between counts."""
    for branch in ("chosen", "rejected"):
        ids, labels = row[f"{branch}_input_ids"], row[f"{branch}_labels"]
        for _, end in labelled_spans(labels)[:-1]:
            labels[end] = ids[end]


def label_the_next_opening(row, chat, pad):
    """As where a conversation ends with another opening for an answer, labelled to its end."""
    _, opening, _, _, end = chat.template_ids(2)
    rest = end[len(chat.end_of_turn_ids) :] + opening
    extend(row, ["chosen"], rest, rest)
    row["chosen_lm_labels"] += rest


def unlabel_ends(row, chat, pad):
    """As where the pad token is the end-of-turn token, and no padding gets a label."""
    end = chat.end_of_turn_ids[-1]
    for branch in ("chosen", "rejected"):
        row[f"{branch}_labels"] = [IGNORED if label == end else label for label in row[f"{branch}_labels"]]
        row[f"ref_{branch}_labels"] = [
            [IGNORED if label == end else label for label in labels] for labels in row[f"ref_{branch}_labels"]
        ]


def label_behind_unlabelled_ends(row, chat, pad):
    label_behind_every_answer(row, chat, pad)
    unlabel_ends(row, chat, pad)


def label_the_opening(row, chat, pad):
    """As where only the first tokens of the assistant's opening count as its marker."""
    for branch in ("chosen", "rejected"):
        for start, _ in labelled_spans(row[f"{branch}_labels"]):
            row[f"{branch}_labels"][start - 1] = row[f"{branch}_input_ids"][start - 1]


def double_the_start(row, chat, pad):
    for branch in ("chosen", "rejected"):
        first = row[f"{branch}_input_ids"][0]
        row[f"{branch}_input_ids"].insert(0, first)
        row[f"{branch}_labels"].insert(0, IGNORED)
    row["chosen_lm_labels"].insert(0, first)


def pad_left(row, chat, pad):
    for branch in ("chosen", "rejected"):
        row[f"{branch}_input_ids"] = [pad] * 3 + row[f"{branch}_input_ids"]
        row[f"{branch}_labels"] = [IGNORED] * 3 + row[f"{branch}_labels"]
    row["chosen_lm_labels"] = [pad] * 3 + row["chosen_lm_labels"]


def pad_right(row, chat, pad):
    extend(row, ["chosen"], [pad] * 3)
    row["chosen_lm_labels"] += [pad] * 3


def pad_references(row, chat, pad):
    row |= padded(row, pad, masks=False)


def pad_references_with_masks(row, chat, pad):
    row |= padded(row, pad, masks=True)


def shift_all(row, chat, pad):
    for name in ("chosen_labels", "rejected_labels", "chosen_lm_labels"):
        change(row, name, shift)
    for branch in ("chosen", "rejected"):
        change(row, f"ref_{branch}_labels", lambda lists: [shift(labels) for labels in lists])


def cut_shifted_labels(row, chat, pad):
    shift_all(row, chat, pad)
    change(row, "chosen_lm_labels", lambda labels: labels[:-1])


def nest(row, chat, pad):
    for name in ("chosen_input_ids", "chosen_labels"):
        change(row, name, lambda values: [values])


def lengthen_labels(row, chat, pad):
    change(row, "rejected_labels", lambda labels: [*labels, IGNORED])


def ignore_an_answer(row, chat, pad):
    start, end = labelled_spans(row["chosen_labels"])[1]
    row["chosen_lm_labels"][start : end - 1] = [IGNORED] * (end - 1 - start)


def add_a_reference(row, chat, pad):
    other = published_row(chat, text_pair(5, 1))
    for branch in ("chosen", "rejected"):
        for name in ("input_ids", "labels"):
            row[f"ref_{branch}_{name}"].insert(1, other[f"ref_{branch}_{name}"][0])


def leave_a_question(row, chat, pad):
    """The next user message, but no answer."""
    question = chat.tokenizer("What follows?", add_special_tokens=False)["input_ids"]
    extend(row, ["chosen"], question)
    row["chosen_lm_labels"] += question


def lose_a_reference(row, chat, pad, turn=2):
    for branch in ("chosen", "rejected"):
        for name in ("input_ids", "labels"):
            del row[f"ref_{branch}_{name}"][turn]


def lose_a_prompt(row, chat, pad, turn=2):
    for branch in ("chosen", "rejected"):
        labels = row[f"ref_{branch}_labels"][turn]
        ((start, _),) = labelled_spans(labels)
        del row[f"ref_{branch}_input_ids"][turn][:start], labels[:start]


def lose_a_turn(row, chat, pad, turn=2):
    ids, labels = drop_turn(row["rejected_input_ids"], row["rejected_labels"], turn)
    row |= {"rejected_input_ids": ids, "rejected_labels": labels}


def cut_the_last_answer(row, chat, pad):
    """The sequence is truncated."""
    for name in ("chosen_input_ids", "chosen_labels", "chosen_lm_labels"):
        change(row, name, lambda values: values[:-2])


def empty_an_answer(row, chat, pad, turn=2):
    start, end = labelled_spans(row["chosen_labels"])[turn]
    for name in ("chosen_input_ids", "chosen_labels", "chosen_lm_labels"):
        del row[name][start : end - 1]


def change_a_reference(row, chat, pad, turn=2):
    for name in ("input_ids", "labels"):
        row[f"ref_rejected_{name}"][turn][-2] += 1


def change_a_prompt(row, chat, pad):
    """The reference answers are then scored behind different chunks."""
    row["ref_rejected_input_ids"][2][9] += 1


def lose_a_turn_in_the_middle(row, chat, pad):
    """After it, the two conversations do not match."""
    lose_a_turn(row, chat, pad, 1)


def use_unknown_ids(row, chat, pad):
    row["chosen_input_ids"][5] = row["rejected_input_ids"][5] = row["chosen_lm_labels"][5] = 100_000


def mask_inside(row, chat, pad):
    row["chosen_attention_mask"] = [1] * len(row["chosen_input_ids"])
    row["chosen_attention_mask"][9] = 0


def change_the_document(row, chat, pad):
    row["rejected_input_ids"][9] += 1


def change_an_instruction(row, chat, pad):
    row["rejected_input_ids"][labelled_spans(row["rejected_labels"])[1][0] - 6] += 1


def put_a_special_token_inside(row, chat, pad):
    start, _ = labelled_spans(row["chosen_labels"])[1]
    special = min(chat.special.ids - {*chat.end_of_turn_ids, chat.tokenizer.pad_token_id})
    row["chosen_input_ids"][start + 1] = row["chosen_labels"][start + 1] = row["chosen_lm_labels"][start + 1] = special


def end_a_turn_twice(row, chat, pad):
    start, _ = labelled_spans(row["chosen_labels"])[1]
    end = chat.end_of_turn_ids[-1]
    row["chosen_input_ids"][start + 1] = row["chosen_labels"][start + 1] = row["chosen_lm_labels"][start + 1] = end
