"""Every word the demo's documents can contain, each of them one token.

A fact is `Marta: Lisbon.`, a question names the fact in a form of its own (`MARTA?`), so that a small model can tell an
asked name from a mentioned one by its token alone.
"""


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


def asked_form(name: str) -> str:
    """The token by which a question names a fact."""
    return f"{name.upper()}?"


def fact_form(name: str) -> str:
    """The token by which a document and an answer name a fact."""
    return f"{name}:"


def all_words() -> list[str]:
    """The vocabulary without special tokens, in the order of its ids."""
    prose = (*OPENERS, *ARTICLES, *ADJECTIVES, *NOUNS, *VERBS, *PREPOSITIONS)
    facts = (*map(fact_form, NAMES), *map(asked_form, NAMES), *PLACES)
    words = [STOP, *QUESTION_OPENING, *WRITE_INSTRUCTION, *prose, *facts]
    assert len(set(words)) == len(words), "a word stands twice in the lexicon"
    return words
