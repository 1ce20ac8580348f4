"""A model directory whose tokenizer or template cannot be used: one sentence that names the file or the line."""

import copy
import json
import shutil

import pytest
from support.damage import LFS_POINTER, WEB_PAGE, edit_json, truncate
from support.tiny_models import save_tiny, tiny_tokenizer

from nemo_longpo.data_tools.model import load_chat, tokenizer_identity
from nemo_longpo.errors import InputError


@pytest.fixture
def model(model_dir, tmp_path):
    return shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def template(model, text):
    (model / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(model / "tokenizer_config.json", chat_template=text)


def newer(model):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["type"] = "BPE2"
    path.write_text(json.dumps(content))


FAULTS = {
    "cut": (lambda model: truncate(model / "tokenizer.json", 0.5), "tokenizer.json is not readable JSON"),
    "pointer": (
        lambda model: (model / "tokenizer.json").write_text(LFS_POINTER),
        "tokenizer.json is a Git LFS pointer, not the file itself; run `git lfs pull`",
    ),
    "web page": (
        lambda model: (model / "tokenizer_config.json").write_text(WEB_PAGE),
        "tokenizer_config.json is a",
    ),
    "newer": (
        newer,
        r"tokenizer.json cannot be read by tokenizers 0\S+ \(.*\); it is damaged, or was saved by",
    ),
    "none": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer"),
    "transformers 5": (
        lambda model: edit_json(model / "tokenizer_config.json", extra_special_tokens=["<s>"]),
        "tokenizer_config.json is of transformers 5, which transformers 4",
    ),
    "code": (
        lambda model: edit_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.y", None]}),
        "auto_map names code that comes with the model, which is never run",
    ),
    "a setting of another kind": (
        lambda model: edit_json(model / "tokenizer_config.json", model_max_length="long"),
        "tokenizer_config.json: field 'model_max_length' should be a number from 0 to 1e300, not 'long'",
    ),
    "a token that is none": (
        lambda model: edit_json(model / "tokenizer_config.json", eos_token={"content": 7}),
        r"tokenizer_config.json: field 'eos_token' should be a string, or an object with .*, not {'content': 7}",
    ),
    "a template that is none": (
        lambda model: template(model, [{"name": "default"}]),
        "holds no tokenizer that can be loaded \\(KeyError: 'template'\\); download its files again",
    ),
    "no template": (lambda model: template(model, None), "has no chat template: use an instruct model"),
    "named templates": (
        lambda model: template(model, [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]),
        "has chat templates named rag, tool_use, but none named default; rename the one for plain conversations",
    ),
    "syntax": (
        lambda model: template(model, "{% for m in messages %}\n{{ m['content'] }\n{% endfor %}"),
        r"has a syntax error in line 2, \"\{\{ m\['content'\] \}\" \(unexpected '\}'\); correct it there",
    ),
    "refuses": (
        lambda model: template(model, "{{ raise_exception('only one turn') }}"),
        r"refuses alternating user and assistant turns \(only one turn\)",
    ),
    "type error": (
        lambda model: template(model, "{{ messages + 1 }}"),
        r"fails on alternating user and assistant turns \(TypeError: .*\); correct the template",
    ),
    "undefined": (
        lambda model: template(model, "{{ nothing.there }}"),
        r"fails on alternating user and assistant turns \(UndefinedError: 'nothing' is undefined\); correct",
    ),
    "division": (
        lambda model: template(model, "{{ 1 / 0 }}"),
        r"fails on alternating user and assistant turns \(ZeroDivisionError: .*\); correct",
    ),
    "a size as text": (
        lambda model: edit_json(model / "config.json", vocab_size="493"),
        "config.json: field 'vocab_size' should be a whole number from 1 to .*, not '493'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(model, fault):
    damage, message = FAULTS[fault]
    damage(model)
    with pytest.raises(InputError, match=message) as caught:
        load_chat(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


def test_default_template_is_used(model):
    whole = load_chat(model)
    text = whole.tokenizer.chat_template
    template(model, [{"name": "rag", "template": "{{ 1 / 0 }}"}, {"name": "default", "template": text}])
    named = load_chat(model)
    assert isinstance(named.tokenizer.chat_template, dict)
    assert named.prompt("Who crosses?") == whole.prompt("Who crosses?")
    assert tokenizer_identity(named) == tokenizer_identity(whole)


TURN = {"chunk": "A small boat.", "instruction": "Who?", "chosen": "The old clock", "rejected": "One letter"}
PAIR = {"doc_id": "a", "document": "A small boat. The river.", "turns": [TURN]}


@pytest.fixture
def qwen(tmp_path):
    return save_tiny(tmp_path / "model", "qwen2")


def add_tokens(qwen, *tokens, special=False):
    """To the tokenizer alone. The embedding has one row to spare, which makes its number odd."""
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2.5"))
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.save_pretrained(qwen)
    return json.loads((qwen / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    "words",
    [
        ("chunk", "--input", "{pairs}", "--text-field", "document", "--chunk-tokens", "64"),
        ("instruct", "--input", "{pairs}"),
        ("respond", "--input", "{pairs}"),
        ("filter", "--input", "{pairs}"),
        ("score", "--pairs", "{pairs}"),
        ("import-hf", "--input", "{pairs}"),
    ],
    ids=lambda words: words[0],
)
def test_token_without_an_embedding_row(longpo, qwen, tmp_path, words):
    """The document spells it, so a forward pass would end in an index error."""
    rows = add_tokens(qwen, *(f"<extra{index}>" for index in range(3)))
    first = rows - len(tiny_tokenizer("qwen2.5"))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(PAIR | {"document": "A boat. <extra2>"}) + "\n")
    words = [word.format(pairs=pairs) for word in words]
    status, _, err = longpo(*words, "--model", qwen, "--output", tmp_path / "out")
    assert status == 2
    assert err.startswith(
        f"{qwen}: the tokenizer has {3 - first} tokens beyond the {rows} rows of the model's embedding, such as "
        f"'<extra{first}>' (id {rows})"
    )
    assert "\n" not in err
    assert not (tmp_path / "out").exists()


def test_added_pad_token_needs_no_row(qwen):
    add_tokens(qwen, "<pad0>", "<pad1>", "<pad2>", special=True)
    assert load_chat(qwen).response_ids("A boat <pad2>")


def test_template_token_needs_a_row(qwen):
    add_tokens(qwen, "<pad0>", "<pad1>", "<pad2>", special=True)
    path = qwen / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<pad2>"))
    with pytest.raises(InputError, match=r"1 tokens beyond the .* such as '<pad2>'"):
        load_chat(qwen)


def test_decoded_texts_are_not_cleaned_up(qwen):
    """Llama 3's tokenizer_config.json asks for it, which takes the space out of `x != y`."""
    path = qwen / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clean_up_tokenization_spaces": True}))
    chat = load_chat(qwen)
    text = "if x != y : do n't , ' s ."
    assert chat.tokenizer.decode(chat.response_ids(text)) != text
    assert chat.text(chat.response_ids(text)) == text
