"""The pairs format: one document per JSONL line, with its turns. Stages and people write it, so it is checked here.

Seeds depend on what is drawn, not on the order or the worker of draws. Repeated ids are refused before any work is
done: no later stage could tell the documents apart.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nemo_longpo.errors import InputError

from .chat.format import ChatFormat
from .quality.wrapping import holds_thought
from .runner.rows import PartsSource, Row

BRANCHES = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Turn:
    chunk: str
    instruction: str
    chosen: str
    rejected: str
    chosen_token_ids: list[int] | None
    rejected_token_ids: list[int] | None


@dataclass(frozen=True)
class Pair:
    doc_id: str
    document: str
    turns: list[Turn]


def parse_pair(row: Row) -> Pair:
    """Parse a row. Raises InputError, naming file, line and field, if a field is missing or of the wrong kind."""
    turns = read_field(row, row.record, "turns", list, "")
    if not turns:
        raise InputError(f"{row.where}: field 'turns' is empty; give at least one turn")
    return Pair(
        doc_id=read_text(row, row.record, "doc_id", ""),
        document=read_text(row, row.record, "document", ""),
        turns=[_turn(row, turn, f"turns[{index}].") for index, turn in enumerate(turns)],
    )


def read_chunks(row: Row) -> list[str]:
    """Return the chunks of a record that `chunk` wrote. Raises InputError if a field is missing or wrong."""
    for name in ("doc_id", "document"):
        read_text(row, row.record, name, "")
    turns = read_field(row, row.record, "turns", list, "")
    if not turns:
        raise InputError(f"{row.where}: field 'turns' is empty; give at least one turn")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise InputError(f"{row.where}: field 'turns[{index}]' must be an object, not {type(turn).__name__}")
    return [read_text(row, turn, "chunk", f"turns[{index}].") for index, turn in enumerate(turns)]


def check_answers(pair: Pair, chat: ChatFormat, where: str) -> None:
    """Check answers. Raises InputError if one is empty, ends with an end of turn, or holds a special token or a
    thought."""
    for index, turn in enumerate(pair.turns):
        for name in BRANCHES:
            if is_empty(turn, name):
                raise InputError(
                    f"{where}: field 'turns[{index}].{name}' is empty; write an answer, remove the turn, or let "
                    "`longpo data filter` remove it"
                )
            ids = getattr(turn, f"{name}_token_ids")
            if ids and ids[-1] == chat.end_of_turn_ids[-1]:
                raise InputError(
                    f"{where}: field 'turns[{index}].{name}_token_ids' ends with the end-of-turn token {ids[-1]}; "
                    "leave it out, it is added later"
                )
            if found := special_tokens(chat, turn, name):
                raise InputError(
                    f"{where}: field 'turns[{index}].{name}' holds the special token {found[0]}, so it is no answer or "
                    "more than one; remove the turn, or let `longpo data filter --model` remove it"
                )
            _refuse_thought(chat, getattr(turn, name), f"{where}: field 'turns[{index}].{name}'")


def _refuse_thought(chat: ChatFormat, answer: str, field: str) -> None:
    remedy = "remove the turn, or let `longpo data filter --model` remove it"
    if holds_thought(answer):
        raise InputError(f"{field} holds a thought, and answers that think are not supported; {remedy}")
    if chat.rewrites(answer):
        raise InputError(
            f"{field} holds text that the chat template of {chat.tokenizer.name_or_path} leaves out or changes, as it "
            f"does with thoughts; {remedy}"
        )


def is_empty(turn: Turn, name: str) -> bool:
    return getattr(turn, name).strip() == "" or getattr(turn, f"{name}_token_ids") == []


def answer_ids(chat: ChatFormat, pair: Pair, name: str, vocab_size: int, where: str) -> list[list[int]]:
    """Return token ids of every chosen (or rejected) answer, without the end of turn: the stored ones, or the text's.

    Raises InputError if stored ids are outside the vocabulary.
    """
    answers = []
    for index, turn in enumerate(pair.turns):
        stored = getattr(turn, f"{name}_token_ids")
        ids = chat.response_ids(getattr(turn, name)) if stored is None else stored
        field = f"{where}: field 'turns[{index}].{name}_token_ids'"
        if not all(0 <= token < vocab_size for token in ids):
            raise InputError(f"{field} holds ids outside the model's vocabulary of {vocab_size}; use this model's ids")
        answers.append(ids)
    return answers


def special_tokens(chat: ChatFormat, turn: Turn, name: str) -> list[str]:
    """Return the special tokens in an answer, as ids or spelled out. Ids unknown to the tokenizer are no text."""
    ids = getattr(turn, f"{name}_token_ids")
    if ids is None:
        return chat.special.within((), getattr(turn, name))
    return chat.special.within(ids, chat.text([token for token in ids if token < chat.known_ids]))


def without_spelled_ends(chat: ChatFormat, pair: Pair) -> tuple[Pair, int]:
    """Return the pair without spelled-out end tokens after answers given as text, and the number of such answers."""
    turns, count = [], 0
    for turn in pair.turns:
        changes: dict[str, Any] = {
            name: text
            for name in BRANCHES
            if getattr(turn, f"{name}_token_ids") is None
            and (text := chat.special.without_spelled_end(getattr(turn, name))) != getattr(turn, name)
        }
        turns.append(replace(turn, **changes))
        count += len(changes)
    return replace(pair, turns=turns), count


def read_logps(row: Row, record: dict[str, Any], name: str, prefix: str) -> np.ndarray:
    """Return the float32 log-probs that `score` stored. Raises InputError if they are no finite numbers."""
    values = read_field(row, record, name, list, prefix)
    if not set(map(type, values)) <= {int, float} or not all(abs(value) < 1e30 for value in values):
        raise InputError(f"{row.where}: field '{prefix}{name}' must be finite numbers; run `longpo data score` again")
    return np.asarray(values, dtype=np.float32)


def read_ids(row: Row, record: dict[str, Any], name: str, prefix: str) -> list[int]:
    """Return a list of token ids. Raises InputError if it is empty or holds anything else."""
    ids = read_field(row, record, name, list, prefix)
    if set(map(type, ids)) != {int} or min(ids) < 0:
        raise InputError(f"{row.where}: field '{prefix}{name}' must be a list of token ids (whole numbers ≥ 0)")
    return ids


def _turn(row: Row, turn: Any, prefix: str) -> Turn:
    if not isinstance(turn, dict):
        raise InputError(f"{row.where}: field '{prefix[:-1]}' must be an object, not {type(turn).__name__}")
    return Turn(
        chunk=read_text(row, turn, "chunk", prefix),
        instruction=read_text(row, turn, "instruction", prefix),
        chosen=read_field(row, turn, "chosen", str, prefix),
        rejected=read_field(row, turn, "rejected", str, prefix),
        chosen_token_ids=_ids(row, turn, "chosen_token_ids", prefix),
        rejected_token_ids=_ids(row, turn, "rejected_token_ids", prefix),
    )


_NAMES: dict[type, str] = {str: "text", list: "a list"}


def read_field(row: Row, record: dict[str, Any], name: str, kind: type, prefix: str) -> Any:
    """Return `record[name]`. Raises InputError if it is missing or of another type; `prefix` is the path to the
    field."""
    if name not in record:
        raise InputError(f"{row.where}: field '{prefix}{name}' is missing; add it as {_NAMES[kind]}")
    if not isinstance(record[name], kind):
        raise InputError(
            f"{row.where}: field '{prefix}{name}' must be {_NAMES[kind]}, not {type(record[name]).__name__}"
        )
    return record[name]


def read_text(row: Row, record: dict[str, Any], name: str, prefix: str) -> str:
    text = read_field(row, record, name, str, prefix)
    if not text.strip():
        raise InputError(f"{row.where}: field '{prefix}{name}' is empty; fill it in or remove the line")
    return text


def _ids(row: Row, record: dict[str, Any], name: str, prefix: str) -> list[int] | None:
    if record.get(name) is None:
        return None
    # An empty answer is for `filter` to remove.
    return [] if record[name] == [] else read_ids(row, record, name, prefix)


def seed_for(*parts: object) -> int:
    """Return a 63-bit seed of any printable values, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def hash_id(doc_id: str) -> int:
    """Return a 64-bit hash of a document's id."""
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest(), "big")


def refuse_repeated_ids(hashes: "array[int]", rows: Callable[[], Iterable[Row]]) -> None:
    """Raises InputError, naming both places, if a document id occurs twice.

    `hashes` holds `hash_id` of every document, 8 bytes each. Only if two hashes are equal, the rows are read again to
    compare the ids themselves.
    """
    ordered = np.sort(np.asarray(hashes))
    doubled = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: dict[str, str] = {}
    for row in rows() if doubled else ():
        doc_id = row.record["doc_id"]
        if doc_id in seen:
            raise InputError(
                f"{row.where}: document id {doc_id!r} was already used by {seen[doc_id]}; give every document its own "
                "id"
            )
        if hash_id(doc_id) in doubled:
            seen[doc_id] = row.where


def check_own_rows(source: PartsSource, check: Callable[[Row], object]) -> None:
    """Check a hand-made input: every row with `check`, and that no document id occurs twice.

    Raises InputError if an id does, or if `check` does; it must refuse rows whose "doc_id" is not text.
    """
    hashes = array("Q")
    for row in source.rows():
        check(row)
        hashes.append(hash_id(row.record["doc_id"]))
    refuse_repeated_ids(hashes, source.rows)
