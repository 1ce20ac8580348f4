"""Tokenizers of other kinds than the five styles: word level, and one that cannot be taken apart."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_longpo.data_tools.chat.format import ChatFormat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<model>' }}"
    "{{ ' ' + m['content'] + ' ' }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<model>' }}{% endif %}"
)


@pytest.fixture
def word_tokenizer():
    words = ["<unk>", "<s>", "</s>", "<user>", "<model>", "the", "river", "runs", ".", "who", "?", "it"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<model>"],
        chat_template=TEMPLATE,
    )


def test_word_level_tokenizer(word_tokenizer):
    chat = ChatFormat(word_tokenizer)
    assert chat.prompt("the river runs . who ?") == [1, 3, 5, 6, 7, 8, 9, 10, 4]
    assert chat.response_ids("the river") == [5, 6]
    assert chat.end_of_turn_ids == [2]
    pair = chat.long_pair(["the river . who ?", "who ?"], [[5, 6], [11]], [[11], [5]])
    assert pair.trunk_ids == [1, 3, 5, 6, 8, 9, 10, 4]
    assert pair.chosen_ids == [5, 6, 2, 3, 9, 10, 4, 11, 2]
    assert pair.chosen_spans == [(0, 3), (7, 9)]
    assert pair.rejected_ids == [11, 2, 3, 9, 10, 4, 5, 2]
    assert pair.rejected_spans == [(0, 2), (6, 8)]
    assert pair.nll_ignore_spans == [(0, 2), (7, 8), (11, 12), (14, 15)]
    assert chat.text([5, 6, 8]) == "the river ."
    assert chat.token_ends("the river .") == [3, 9, 11]
