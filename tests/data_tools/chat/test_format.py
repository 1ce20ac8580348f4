"""Conversations assembled from pieces equal the tokenizer's own chat template, token for token."""

import copy

import pytest
from support.tiny_models import STYLES, tiny_tokenizer

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.errors import InputError

DOCUMENT = "The river crosses the quiet village.\n\nMy neighbour carries 12 bright lamps! naïve 你好 🙂\n  two  spaces"
USERS = [f"{DOCUMENT}\n\nWho crosses the village?", "And who carries lamps?", "Why?"]
CHOSEN = ["The river.", "My neighbour carries\n12 of them", "No reason is given in the text."]
REJECTED = ["A small boat", "Every teacher answers a question.", "I do not know"]


def conversation(answers, turns):
    messages = []
    for user, answer in zip(USERS[:turns], answers[:turns], strict=True):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return messages


@pytest.fixture(params=STYLES)
def tokenizer(request):
    return tiny_tokenizer(request.param)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_long_sequences_equal_the_template(tokenizer, turns):
    chat = ChatFormat(tokenizer)
    pair = chat.long_pair(
        USERS[:turns],
        [chat.response_ids(text) for text in CHOSEN[:turns]],
        [chat.response_ids(text) for text in REJECTED[:turns]],
    )
    for answers, branch, spans in (
        (CHOSEN, pair.chosen_ids, pair.chosen_spans),
        (REJECTED, pair.rejected_ids, pair.rejected_spans),
    ):
        expected = tokenizer.apply_chat_template(conversation(answers, turns), tokenize=True)
        found = pair.trunk_ids + branch
        assert found == expected[: len(found)]
        # Only what the template writes behind the last end-of-turn token is missing.
        assert tokenizer.decode(expected[len(found) :]).strip() == ""
        assert spans[-1][1] == len(branch)


@pytest.mark.parametrize("padding", ["", "  \n"])
def test_chunks_cover_the_fewest_tokens(tokenizer, padding):
    """A chunk's borders may be inside tokens, after spaces, or in characters of several tokens."""
    chat, user = ChatFormat(tokenizer), padding + USERS[0]
    places = [(start + len(padding), end + len(padding)) for start in range(40) for end in range(62, len(DOCUMENT) + 1)]
    places = [(start, end) for start, end in places if user[start:end] == user[start:end].strip()]
    pair = chat.long_pair([user], [[7]], [[8]], [*places, (0, 0)])
    assert len(places) > 500
    assert pair.chunk_spans[-1] == (0, 0)
    for (start, end), (first, last) in zip(places, pair.chunk_spans, strict=False):
        chunk = user[start:end]
        assert chunk in tokenizer.decode(pair.trunk_ids[first:last])
        assert chunk not in tokenizer.decode(pair.trunk_ids[first + 1 : last])
        assert chunk not in tokenizer.decode(pair.trunk_ids[first : last - 1])


def test_chunk_of_one_multi_token_character():
    tokenizer = tiny_tokenizer("qwen2.5")
    pair = ChatFormat(tokenizer).long_pair(["a灯b"], [[7]], [[8]], [(1, 2), (2, 3)])
    assert [tokenizer.decode(pair.trunk_ids[start:end]) for start, end in pair.chunk_spans] == ["灯", "b"]
    assert pair.chunk_spans[0][1] - pair.chunk_spans[0][0] == 3


def test_prompt_equals_the_template(tokenizer):
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": USERS[0]}], tokenize=True, add_generation_prompt=True
    )
    assert ChatFormat(tokenizer).prompt(USERS[0]) == expected


def test_template_decides_white_space(tokenizer):
    """Llama-3 trims contents, Mistral v0.3 only answers, the others nothing."""
    messages = [{"role": "user", "content": "  The river "}, {"role": "assistant", "content": " A small boat \n"}]
    chat = ChatFormat(tokenizer)
    found = chat.prompt("  The river ") + chat.finished(chat.response_ids(" A small boat \n"))
    assert found == tokenizer.apply_chat_template(messages)[: len(found)]


def test_content_after_a_special_token():
    """Where the tokenizer starts every stretch with a dummy prefix, such a content gets one as well."""
    template = (
        "{% for m in messages %}{{ bos_token + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
    )
    for style in ("mistral-v0.1", "mistral-v0.3"):
        chat = ChatFormat(with_template(template, style))
        found = chat.prompt("river") + chat.finished(chat.response_ids("boat"))
        messages = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "boat"}]
        assert found == chat.tokenizer.apply_chat_template(messages)


def test_response_tokens_match_in_short_and_long(tokenizer):
    chat = ChatFormat(tokenizer)
    chosen = [chat.response_ids(text) for text in CHOSEN]
    pair = chat.long_pair(USERS, chosen, [[7, 8], [9], [10, 11]])
    for turn, (start, end) in enumerate(pair.chosen_spans):
        assert pair.chosen_ids[start:end] == chat.finished(chosen[turn])
        short = chat.prompt(f"a chunk {USERS[turn]}") + chat.finished(chosen[turn])
        messages = [
            {"role": "user", "content": f"a chunk {USERS[turn]}"},
            {"role": "assistant", "content": CHOSEN[turn]},
        ]
        assert short == tokenizer.apply_chat_template(messages, tokenize=True)[: len(short)]
    assert [pair.rejected_ids[start:end] for start, end in pair.rejected_spans] == [
        chat.finished(ids) for ids in ([7, 8], [9], [10, 11])
    ]


QWEN_SYSTEM = [
    "<|im_start|>",
    *"syst",
    "em",
    "Ċ",
    *"You",
    "Ġa",
    "r",
    "e",
    "Ġa",
    "Ġ",
    "he",
    *"lpful",
    "Ġa",
    *"ssistant.",
]
QWEN_USER = ["<|im_end|>", "Ċ", "<|im_start|>", "u", "s", "er", "Ċ"]
# The template's opening; the end of turn; what stands between an end of turn and the next user message.
LITERAL = {
    "mistral-v0.1": (["<s>", "▁", "[", "I", "N", "S", "T", "]"], ["</s>"], ["▁", "▁", "[", "I", "N", "S", "T", "]"]),
    "mistral-v0.2": (["<s>", "▁", "▁", "[", "I", "N", "S", "T", "]"], ["</s>"], list("▁▁[INST]")),
    "mistral-v0.3": (["<s>", "[INST]"], ["</s>"], ["[INST]"]),
    "qwen2.5": ([*QWEN_SYSTEM, *QWEN_USER], ["<|im_end|>"], QWEN_USER[1:]),
    "llama-3": (
        ["<|begin_of_text|>", "<|start_header_id|>", "u", "s", "er", "<|end_header_id|>", "ĊĊ"],
        ["<|eot_id|>"],
        ["<|start_header_id|>", "u", "s", "er", "<|end_header_id|>", "ĊĊ"],
    ),
}
# What stands between a user message and the answer.
OPENING = {
    "mistral-v0.1": list("▁[/INST]"),
    "mistral-v0.2": list("▁[/INST]"),
    "mistral-v0.3": ["[/INST]"],
    "qwen2.5": ["<|im_end|>", "Ċ", "<|im_start|>", *"assistant", "Ċ"],
    "llama-3": ["<|eot_id|>", "<|start_header_id|>", *"assistant", "<|end_header_id|>", "ĊĊ"],
}


@pytest.mark.parametrize("style", STYLES)
def test_nll_ignores_exactly_the_template_tokens(style):
    """Literal expectation for two turns: opening, user, assistant opening | answer, end, next turn, user, opening."""
    tokenizer = tiny_tokenizer(style)
    chat = ChatFormat(tokenizer)
    pair = chat.long_pair(
        ["The river crosses", "A small boat"],
        [chat.response_ids("the quiet village."), chat.response_ids("the north gate?")],
        [[5], [6]],
    )
    ids = pair.trunk_ids + pair.chosen_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    head, end, between = LITERAL[style]
    opening = OPENING[style]
    ignored = [tokens[start:stop] for start, stop in pair.nll_ignore_spans]
    assert ignored == [head, opening, between, opening]
    covered = {position for start, stop in pair.nll_ignore_spans for position in range(start, stop)}
    kept = [token for position, token in enumerate(tokens) if position not in covered]
    assert kept.count(end[0]) == 2
    text = tokenizer.decode(tokenizer.convert_tokens_to_ids(kept), skip_special_tokens=True)
    for phrase in ("The river crosses", "the quiet village.", "A small boat", "the north gate?"):
        assert phrase in text
    assert "INST" not in text
    assert "assistant" not in text


def test_special_tokens_in_documents_stay_text(tokenizer):
    chat = ChatFormat(tokenizer)
    special = tokenizer.eos_token
    ids = chat.prompt(f"a text that says {special} and goes on")
    plain = chat.prompt("a text that says and goes on")
    assert ids.count(tokenizer.eos_token_id) == plain.count(tokenizer.eos_token_id)
    assert special in tokenizer.decode(ids)[len("x") :]


def test_generated_ids_are_never_tokenised_again(tokenizer):
    """Two ids that the tokenizer itself would merge stay two ids."""
    chat = ChatFormat(tokenizer)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "The"]
    pair = chat.long_pair(["hello"], [letters], [letters])
    assert pair.chosen_ids == [*letters, *chat.end_of_turn_ids]


def with_template(template, style="qwen2.5"):
    tokenizer = copy.deepcopy(tiny_tokenizer(style))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('only one message please') }}", "refuses alternating.*only one message please"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "drops, repeats or changes"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "drops, repeats or changes"),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}", "does not end"),
        (
            "{% for m in messages %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant<think>{% endif %}",
            "prompts for an answer with.*<think>",
        ),
    ],
)
def test_templates_beyond_the_rules_are_refused(template, message):
    with pytest.raises(InputError, match=message):
        ChatFormat(with_template(template))


LEADS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_text_before_end_token_belongs_to_end_of_turn():
    """A token may hold the end of an answer and this text; what a model wrote is kept, and nothing is written twice."""
    chat = ChatFormat(with_template(LEADS))
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_ids) == ["Ċ", "<|im_end|>"]
    newline, end = chat.end_of_turn_ids
    assert chat.finished([5, 6]) == [5, 6, newline, end]
    assert chat.finished([5, 6, newline]) == [5, 6, newline, end]
    merged = chat.tokenizer.convert_tokens_to_ids("ĊĊ")
    assert chat.finished([5, 6, merged]) == [5, 6, merged, end]


@pytest.mark.parametrize(
    ("style", "end"), [("qwen2.5", "<|im_end|>"), ("mistral-v0.1", "</s>"), ("mistral-v0.3", "</s>")]
)
@pytest.mark.parametrize("lead", ["\n", "\n\n", " ", " fin"])
def test_answers_and_their_ends_are_what_a_server_makes_of_them(style, end, lead):
    template = LEADS.replace("\n<|im_end|>", f"{lead}{end}").replace("<|im_start|>", "[at]")
    chat = ChatFormat(with_template(template, style))
    for answer in ("The river.", "A small boat\n", "12", "A boat fin"):
        messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]
        whole = chat.tokenizer.apply_chat_template(messages)
        assert [*chat.prompt("Who?"), *chat.finished(chat.response_ids(answer))] == whole
