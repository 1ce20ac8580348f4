"""A model directory whose tokenizer or template cannot be used: one sentence that names the file or the line."""

import json
import shutil

import pytest
from damage import LFS_POINTER, WEB_PAGE, edit_json, truncate

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
        "tokenizer_config.json: model_max_length is 'long'; it must be a number",
    ),
    "a token that is none": (
        lambda model: edit_json(model / "tokenizer_config.json", eos_token={"content": 7}),
        r"tokenizer_config.json: eos_token is \{'content': 7\}; it must be a string, or an object",
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
        "config.json: vocab_size is '493'; it must be a whole number",
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


def test_the_default_of_several_templates_is_used(model):
    whole = load_chat(model)
    text = whole.tokenizer.chat_template
    template(model, [{"name": "rag", "template": "{{ 1 / 0 }}"}, {"name": "default", "template": text}])
    named = load_chat(model)
    assert isinstance(named.tokenizer.chat_template, dict)
    assert named.prompt("Who crosses?") == whole.prompt("Who crosses?")
    assert tokenizer_identity(named) == tokenizer_identity(whole)
