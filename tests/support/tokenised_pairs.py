"""Pairs in both forms: as text, and as the tokenised record that holds the same ids."""

from typing import Any

from support.published_pairs import text_pair

from nemo_longpo.data_tools.chat.format import ChatFormat


def tokenised_record(chat: ChatFormat, index: int, turns: int = 2) -> dict[str, Any]:
    """Return the record of `text_pair(index, turns)`."""
    pair = text_pair(index, turns)
    users = [f"{pair['document']}\n\n{pair['turns'][0]['instruction']}"]
    users += [turn["instruction"] for turn in pair["turns"][1:]]
    answers = [[chat.response_ids(turn[name]) for turn in pair["turns"]] for name in ("chosen", "rejected")]
    long = {name: value for name, value in vars(chat.long_pair(users, *answers)).items() if value is not None}
    prompts = [chat.prompt(f"{turn['chunk']}\n\n{turn['instruction']}") for turn in pair["turns"]]
    fields = {name: [list(span) for span in value] if "spans" in name else value for name, value in long.items()}
    return {"doc_id": pair["doc_id"], **fields, "short_prompts": prompts}
