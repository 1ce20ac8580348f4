"""The committed model has the abilities that the demo needs, and lacks the one that it teaches."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_longpo.recipes.demo.corpus import answer, asked_name, make_document, question, write_request
from nemo_longpo.recipes.demo.one_round import BASE_LENGTH, BASE_MODEL, PROMPTS
from nemo_longpo.recipes.demo.tokenizer import build_tokenizer
from nemo_longpo.recipes.demo.train_base import accuracy, respond


@pytest.fixture(scope="module")
def base():
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(BASE_MODEL, local_files_only=True)


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(BASE_MODEL).iterdir()) < 5e6


def test_stored_tokenizer_matches_the_script(base) -> None:
    _, tokenizer = base
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    assert len(tokenizer) == base[0].config.vocab_size


def test_text_survives_the_tokenizer(base) -> None:
    _, tokenizer = base
    text = make_document(random.Random(1), 200).text
    ids = tokenizer(text).input_ids
    assert len(ids) == 200
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == " ".join(text.split())


def test_template_matches_learned_pieces(base) -> None:
    _, tokenizer = base
    document, name = make_document(random.Random(2), 64), "Marta"
    messages = [
        {
            "role": "user",
            "content": json.loads(PROMPTS.read_text())["ask"].format(
                document=document.text, instruction=question(name)
            ),
        },
        {"role": "assistant", "content": answer(name, "Lisbon")},
        {"role": "user", "content": question("Vera")},
        {"role": "assistant", "content": answer("Vera", "Rome")},
    ]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    bos, user, close, end = tokenizer.convert_tokens_to_ids(["<s>", "[INST]", "[/INST]", "</s>"])
    first = [bos, user, *ids(document.text), *ids(question(name)), close, *ids(answer(name, "Lisbon")), end]
    second = [user, *ids(question("Vera")), close, *ids(answer("Vera", "Rome")), end]
    assert tokenizer.apply_chat_template(messages) == first + second


def test_prompt_file_matches_training() -> None:
    template = json.loads(PROMPTS.read_text())["write_instruction"]
    assert template.format(document="X.") == f"X. {write_request()}"


@pytest.mark.slow
def test_recall_works_in_short_documents_only(base) -> None:
    assert accuracy(*base, tokens=BASE_LENGTH, samples=32) >= 0.97
    assert accuracy(*base, tokens=8 * BASE_LENGTH, samples=32) <= 0.05


def test_later_turns_are_answered_too(base) -> None:
    document = make_document(random.Random(3), 96)
    messages: list[dict[str, str]] = []
    for i, (name, place) in enumerate(document.facts.items()):
        messages.append({"role": "user", "content": question(name) if i else f"{document.text} {question(name)}"})
        messages.append({"role": "assistant", "content": respond(*base, [messages])[0]})
        assert messages[-1]["content"] == answer(name, place)


def test_writes_questions_about_the_document(base) -> None:
    rng = random.Random(4)
    torch.manual_seed(0)
    document, samples = make_document(rng, 96), 32
    others = [make_document(rng, 96) for _ in range(samples)]
    conversations = [
        [{"role": "user", "content": f"{text} {write_request()}"}]
        for text in (document.text, *(d.text for d in others))
    ]
    written = respond(*base, conversations, do_sample=True, temperature=0.7, top_p=0.9)
    right = [asked_name(text) in d.facts for text, d in zip(written, (document, *others), strict=True)]
    assert sum(right) >= 0.9 * len(right)
    repeated = respond(*base, [conversations[0]] * samples, do_sample=True, temperature=0.7, top_p=0.9)
    assert len(set(repeated)) >= len(document.facts) - 1
