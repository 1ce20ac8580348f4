"""Text pairs as rows of a published tokenised dataset, made with the tokenizer's own chat template."""

from itertools import pairwise
from typing import Any

from support.small_corpus import make_document

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.logprobs import IGNORE_LABEL as IGNORED


def text_pair(index: int, turns: int = 3) -> dict[str, Any]:
    document = make_document(index)
    made = [
        {
            "chunk": document[40 * turn : 40 * turn + 60].strip(),
            "instruction": f"What follows {turn}?",
            "chosen": f"A small boat crosses {index}.",
            "rejected": f"The river {turn} answers.",
        }
        for turn in range(turns)
    ]
    return {"doc_id": f"document-{index}", "document": document, "turns": made}


def published_row(chat: ChatFormat, pair: dict[str, Any]) -> dict[str, Any]:
    """Clean columns: nothing padded, labels only on answers and their ends."""
    turns = pair["turns"]
    row: dict[str, Any] = {"id": pair["doc_id"]}
    for branch in ("chosen", "rejected"):
        users = [f"{pair['document']}\n\n{turns[0]['instruction']}", *(turn["instruction"] for turn in turns[1:])]
        answers = [turn[branch] for turn in turns]
        row |= {f"{branch}_{name}": value for name, value in conversation(chat, users, answers).items()}
        shorts = [conversation(chat, [f"{turn['chunk']}\n\n{turn['instruction']}"], [turn[branch]]) for turn in turns]
        row |= {f"ref_{branch}_{name}": [short[name] for short in shorts] for name in ("input_ids", "labels")}
    answers = [[chat.response_ids(turn[name]) for turn in turns] for name in ("chosen", "rejected")]
    row["chosen_lm_labels"] = list(row["chosen_input_ids"])
    for start, end in chat.long_pair(users, *answers).nll_ignore_spans:
        row["chosen_lm_labels"][start:end] = [IGNORED] * (end - start)
    return row


def conversation(chat: ChatFormat, users: list[str], answers: list[str]) -> dict[str, list[int]]:
    """Input ids up to the last end of turn, and labels: where an answer starts and ends, the template itself says."""
    messages = [
        {"role": role, "content": content}
        for user, answer in zip(users, answers, strict=True)
        for role, content in (("user", user), ("assistant", answer))
    ]
    render = chat.tokenizer.apply_chat_template
    ids = render(messages)
    labels = [IGNORED] * len(ids)
    ends = [at + 1 for at, token in enumerate(ids) if token == chat.end_of_turn_ids[-1]]
    for turn in range(len(users)):
        start = len(render(messages[: 2 * turn + 1], add_generation_prompt=True))
        end = next(end for end in ends if end > start)
        labels[start:end] = ids[start:end]
    return {"input_ids": ids[:end], "labels": labels[:end]}


def padded(row: dict[str, Any], pad: int, *, masks: bool) -> dict[str, Any]:
    """Reference sequences of equal lengths, padded on the right, and perhaps the masks that say so."""
    row = dict(row)
    for branch in ("chosen", "rejected"):
        name = f"ref_{branch}_input_ids"
        longest = 2 + max(map(len, row[name]))
        if masks:
            row[f"ref_{branch}_attention_mask"] = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in row[name]]
            row[f"{branch}_attention_mask"] = [1] * len(row[f"{branch}_input_ids"])
        row[name] = [ids + [pad] * (longest - len(ids)) for ids in row[name]]
        name = f"ref_{branch}_labels"
        row[name] = [labels + [IGNORED] * (longest - len(labels)) for labels in row[name]]
    return row


def labelled_spans(labels: list[int]) -> list[tuple[int, int]]:
    standing = [False, *(label != IGNORED for label in labels), False]
    edges = [at for at, (before, after) in enumerate(pairwise(standing)) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))
