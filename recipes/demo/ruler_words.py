"""RULER in the demo's three hundred words, for `longpo eval --wording`: `ruler.json` beside this file.

Needles are the facts of the demo's documents, and the question is the one that its model knows; so the task of several
keys is what the demo trains. Nobody has taught the model chains of variables or lists of words.
"""

import json
import random
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import write_file

from . import corpus

FILE = Path(__file__).with_name("ruler.json")
_SEED = 11
_SENTENCES = 300
_TOKENS_PER_SENTENCE = 6


def ruler_words() -> dict[str, Any]:
    """Return the content of the wording file; the sentences are new ones, made as those of the demo's documents are."""
    rng = random.Random(_SEED)
    sentences = corpus.prose(rng, _SENTENCES * _TOKENS_PER_SENTENCE)
    asked = f"{{context}} {' '.join(corpus.QUESTION_OPENING)} {{query}}"
    listed = {
        "template": f"{{context}}{corpus.STOP} {corpus.WRITE_INSTRUCTION[0]} some{corpus.STOP}",
        "words": [*corpus.NOUNS, *corpus.ADJECTIVES, *corpus.VERBS],
        "max_new_tokens": 8,
    }
    return {
        "needles": {
            "template": asked,
            "needle": corpus.answer("{key}", "{value}") + corpus.STOP,
            "answer": corpus.answer("{key}", "{value}"),
            "repeat": sentences[0],
            "sentences": sentences,
            "keys": {name: corpus.asked_form(name) for name in corpus.NAMES},
            "values": corpus.PLACES,
            "separator": " ",
            "last_separator": " ",
            "tokens_per_key": corpus.TOKENS_PER_FACT,
            "max_new_tokens": 8,
        },
        "chains": {
            "template": f"{asked}{corpus.STOP}",
            "first": f"{{variable}} {{value}}{corpus.STOP}",
            "link": f"{{variable}} {{previous}}{corpus.STOP}",
            "noises": sentences,
            "variables": [corpus.fact_form(name) for name in corpus.NAMES],
            "values": corpus.PLACES,
            "max_new_tokens": 16,
        },
        "common_words": listed | {"common": 3},
        "frequent_words": listed | {"noise": corpus.ARTICLES[0]},
    }


if __name__ == "__main__":
    write_file(FILE, json.dumps(ruler_words(), indent=1) + "\n")
