"""Generate long documents: prose of small sentences, with facts (`Marta: Lisbon.`) spread evenly between them.

Everything is a function of a seeded `random.Random`. Lengths are counted in tokens: words and full stops. Each word
is one token. A question names a fact in its own form (`MARTA?`), so that a small model can distinguish an asked name
from a mentioned one by its token alone.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo.atomic import write_file


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Alan Alma Amir Anna Arlo Axel Bela Bruno Carl Cleo Clara Dana Diego Dora Edith Elio Emma Enzo Erik Esra Fern "
    "Felix Flora Frida Gina Greta Hana Hugo Ida Igor Inga Iris Ivan Jana Jonas Judit Kai Karin Kofi Lars Leila Lena "
    "Liam Luca Mara Marta Milo Mina Nadia Nils Nora Olga Omar Oscar Paula Pedro Petra Rosa Ruben Sara Tariq Vera "
    "Yuki"
)
PLACES = _words(
    "Accra Athens Bergen Berlin Bogota Bruges Cairo Cork Dakar Delhi Dublin Geneva Ghent Hanoi Havana Jaipur Kyoto "
    "Lagos Leeds Lima Lisbon London Lyon Madrid Malmo Manila Milan Nairobi Naples Oslo Oxford Paris Porto Prague "
    "Quito Riga Rome Seoul Seville Sofia Tokyo Tunis Turin Utrecht Vienna Warsaw York Zurich"
)

OPENERS = ("The", "One", "Each", "Another")
ARTICLES = ("the", "some", "that", "this")
ADJECTIVES = _words("old quiet grey narrow bright heavy small distant empty warm crooked green cold tall")
NOUNS = _words(
    "river bridge lantern garden market tower window harbor road field orchard chapel ferry mill station meadow "
    "cellar library wagon hill"
)
VERBS = _words("waits rests leans shines fades turns sleeps stands hums drifts settles creaks")
PREPOSITIONS = _words("near behind beside above under beyond past against")

QUESTION_OPENING = ("Where", "is")
WRITE_INSTRUCTION = ("Write", "a", "question")
STOP = "."

TOKENS_PER_FACT = 24
FACT_TOKENS = 3
SENTENCES_PER_PARAGRAPH = 6
_FOLLOWERS_PER_WORD = 4
# Word classes of a sentence, by its number of tokens (the full stop included).
_PATTERNS: dict[int, tuple[Sequence[str], ...]] = {
    4: (OPENERS, NOUNS, VERBS),
    5: (OPENERS, ADJECTIVES, NOUNS, VERBS),
    6: (OPENERS, ADJECTIVES, ADJECTIVES, NOUNS, VERBS),
    7: (OPENERS, NOUNS, VERBS, PREPOSITIONS, ARTICLES, NOUNS),
    8: (OPENERS, ADJECTIVES, NOUNS, VERBS, PREPOSITIONS, ARTICLES, NOUNS),
    9: (OPENERS, ADJECTIVES, NOUNS, VERBS, PREPOSITIONS, ARTICLES, ADJECTIVES, NOUNS),
}
SHORTEST_SENTENCE, LONGEST_SENTENCE = min(_PATTERNS), max(_PATTERNS)


def asked_form(name: str) -> str:
    """Return the token by which a question names a fact."""
    return f"{name.upper()}?"


def fact_form(name: str) -> str:
    """Return the token by which a document and an answer name a fact."""
    return f"{name}:"


def all_words() -> list[str]:
    """Return the vocabulary without special tokens, in the order of its ids."""
    prose = (*OPENERS, *ARTICLES, *ADJECTIVES, *NOUNS, *VERBS, *PREPOSITIONS)
    facts = (*map(fact_form, NAMES), *map(asked_form, NAMES), *PLACES)
    words = [STOP, *QUESTION_OPENING, *WRITE_INSTRUCTION, *prose, *facts]
    assert len(set(words)) == len(words), "a word occurs twice"
    return words


@dataclass(frozen=True)
class Document:
    """A text and the facts it states, name -> place, in the order of the text."""

    text: str
    facts: dict[str, str]


def question(name: str) -> str:
    """Return the instruction that asks for one fact."""
    return " ".join((*QUESTION_OPENING, asked_form(name)))


def answer(name: str, place: str) -> str:
    """Return the right response: the fact's name, then its place."""
    return f"{fact_form(name)} {place}"


def write_request() -> str:
    """Return the instruction that asks the model to write a question."""
    return f"{' '.join(WRITE_INSTRUCTION)}{STOP}"


def asked_name(instruction: str) -> str | None:
    """Return the name that an instruction asks about; None if it is not a well-formed question."""
    return next((name for name in NAMES if question(name) == instruction.strip()), None)


def facts_for(tokens: int, mentions: float = 1.0) -> int:
    """Return the number of facts in a document of this length: one per 24 tokens, or fewer if they are stated more than
    once; at least 2, at most one per name."""
    return max(2, min(round(tokens // TOKENS_PER_FACT / mentions), len(NAMES)))


def make_document(rng: random.Random, tokens: int, facts: int | None = None, mentions: float = 1.0) -> Document:
    """Return a document of `tokens` tokens (up to three fewer if no sentence fits the rest) with distinct names.

    With `mentions` above 1 a fact is stated so often on average, one statement per 24 tokens. Statements are spread
    evenly, so that every sufficiently long chunk holds one.
    """
    count = facts_for(tokens, mentions) if facts is None else facts
    statements = count if mentions <= 1 else max(count, tokens // TOKENS_PER_FACT)
    if not 0 < count <= len(NAMES) or tokens < FACT_TOKENS * statements:
        raise ValueError(f"a document of {tokens} tokens cannot state {count} facts about {len(NAMES)} names")
    stated = {name: rng.choice(PLACES) for name in rng.sample(NAMES, count)}
    sentences = prose(rng, tokens - FACT_TOKENS * statements)
    order = list(stated)
    if statements > count:
        order += [rng.choice(order) for _ in range(statements - count)]
        rng.shuffle(order)
    placed = [
        (rng.uniform(i, i + 1) * len(sentences) / statements, answer(name, stated[name]))
        for i, name in enumerate(order)
    ]
    parts = [*enumerate(sentences), *((position - 0.5, f"{fact}{STOP}") for position, fact in placed)]
    return Document(_paragraphs([text for _, text in sorted(parts)]), stated)


def write_corpus(
    path: Path,
    documents: int,
    tokens: int,
    seed: int,
    *,
    shortest: int | None = None,
    logarithmic: bool = False,
    mentions: float = 1.0,
) -> None:
    """Write `documents` documents to a JSONL file, one object with `doc_id` and `text` per line.

    They have `tokens` tokens each, or with `shortest` any number from there on; `logarithmic` makes as many of 100 to
    200 tokens as of 1,000 to 2,000.
    """
    rng = random.Random(seed)
    lines = []
    for number in range(documents):
        length = tokens if shortest is None else rng.randint(shortest, tokens)
        if shortest is not None and logarithmic:
            length = round(math.exp(rng.uniform(math.log(shortest), math.log(tokens))))
        text = make_document(rng, length, mentions=mentions).text
        lines.append(json.dumps({"doc_id": f"demo-{number:04d}", "text": text}))
    write_file(path, "".join(f"{line}\n" for line in lines))


def _paragraphs(sentences: list[str]) -> str:
    starts = range(0, len(sentences), SENTENCES_PER_PARAGRAPH)
    return "\n\n".join(" ".join(sentences[i : i + SENTENCES_PER_PARAGRAPH]) for i in starts)


def prose(rng: random.Random, tokens: int) -> list[str]:
    """Return sentences of `tokens` tokens in total; a rest shorter than the shortest sentence is left out."""
    sentences = []
    while tokens >= SHORTEST_SENTENCE:
        fitting = [n for n in _PATTERNS if n == tokens or n <= tokens - SHORTEST_SENTENCE]
        length = rng.choice(fitting)
        sentences.append(_sentence(rng, length))
        tokens -= length
    return sentences


def _sentence(rng: random.Random, length: int) -> str:
    words: list[str] = []
    for word_class in _PATTERNS[length]:
        words.append(_following(rng, words[-1], word_class) if words else rng.choice(word_class))
    return f"{' '.join(words)}{STOP}"


def _following(rng: random.Random, previous: str, word_class: Sequence[str]) -> str:
    """Return one of the few words of a class that may follow a word: a small model can predict such prose well."""
    first = sum(map(ord, previous)) % len(word_class)
    step = rng.randrange(_FOLLOWERS_PER_WORD)
    word = word_class[(first + step) % len(word_class)]
    # One step beyond the followers, so that no word occurs twice in a row.
    return word if word != previous else word_class[(first + _FOLLOWERS_PER_WORD) % len(word_class)]
