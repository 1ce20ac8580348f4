"""A model on our engines as the harness sees it, against the harness's own HFLM on the same weights and tasks."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import benchmark_data
from support.evaluation_models import DAY, engine_lm, open_one
from support.scripted_model import ScriptedEngine
from support.tiny_models import TEMPLATES, save_tiny, tiny_tokenizer

from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import models, plan

pytestmark = pytest.mark.slow  # models and the harness are loaded

USER = ("<|start_header_id|>user", "<|im_start|>user", "[INST]")
GENERATION = {"until": ["\n", "?"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}


def slow(*values: object):
    return pytest.param(*values, marks=pytest.mark.slow)


def own_tasks(directory: Path, data: Path) -> Path:
    """Questions with written answers, and questions with choices, with examples and without."""
    files = {"test": str(data / "test.jsonl"), "train": str(data / "train.jsonl")}
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "training_split": "train",
        "doc_to_text": "Question: {{question}}\nAnswer:",
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    written = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices.text[0]}}",
        "generation_kwargs": GENERATION,
        "metric_list": [metric | {"metric": "exact_match"}],
    }
    chosen = {
        "output_type": "multiple_choice",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [metric | {"metric": "acc"}, metric | {"metric": "acc_norm"}],
    }
    for shots in (0, 3):
        for name, kind in (("written", written), ("chosen", chosen)):
            task = common | kind | {"task": f"{name}_{shots}", "num_fewshot": shots}
            (directory / f"{name}_{shots}.yaml").write_text(yaml.safe_dump(task))
    return directory


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    benchmark_data.write_rows(data / "test.jsonl", benchmark_data.arc(5))
    benchmark_data.write_rows(data / "train.jsonl", benchmark_data.arc(6, 100))
    return own_tasks(tmp_path_factory.mktemp("tasks"), data)


@pytest.fixture(scope="module", params=["llama", slow("qwen2"), slow("mistral")])
def model(request, tmp_path_factory):
    return open_one(save_tiny(tmp_path_factory.mktemp("model"), request.param, seed=1))


def run(language_model, tasks, **settings):
    import lm_eval
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=language_model,
        tasks=["written_0", "chosen_0", "written_3", "chosen_3"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, slow({"apply_chat_template": True}), {"apply_chat_template": True, "system_instruction": "Be brief."}],
)
def test_the_harness_gets_from_it_what_its_own_model_class_gives(model, tasks, tmp_path, settings):
    from lm_eval.models.huggingface import HFLM

    if "system_instruction" in settings and "INST" in model.tokenizer.chat_template:
        pytest.skip("this template has no place for it")
    own = run(engine_lm(model, tmp_path), tasks, **settings)
    theirs = run(HFLM(pretrained=str(model.directory), device="cpu", dtype="float32", batch_size=1), tasks, **settings)
    for task, samples in own["samples"].items():
        assert len(samples) == 5
        for ours, other in zip(samples, theirs["samples"][task], strict=True):
            assert ours["arguments"] == other["arguments"], task
            found, expected = ours["resps"], other["resps"]
            if task.startswith("written"):
                assert found[0][0] == expected[0][0].strip()
            else:
                logps = [choice[0][0] for choice in expected]
                assert [choice[0][0] for choice in found] == pytest.approx(logps, abs=1e-4)
                assert {len(logps)} <= {3, 4}
    for task, metrics in own["results"].items():
        for name, value in metrics.items():
            if name.startswith("acc"):
                assert value == theirs["results"][task][name], (task, name)
    if "apply_chat_template" in settings:
        context, _ = own["samples"]["chosen_3"][0]["arguments"][0]
        user = next(mark for mark in USER if mark in context)
        assert context.count(user) == context.count("Question:") == 4, "each example is a turn"
    if "system_instruction" in settings:
        assert "Be brief." in context
    texts = [sample["resps"][0][0] for task in ("written_0", "written_3") for sample in own["samples"][task]]
    assert any(texts), "all answers are empty"


@pytest.mark.parametrize(
    ("text", "until", "expected"),
    [
        ("Oslo\nis far", ["\n"], "Oslo"),
        ("\nOslo", ["\n"], ""),  # as the harness's own classes
        (" Oslo \n", ["\n"], "Oslo"),
        (" Oslo? No! ", ["!", "?"], "Oslo"),
        (" Oslo ", [], "Oslo"),
        ("Oslo", [""], "Oslo"),
        ("Oslo\nis far", "\n", "Oslo"),
    ],
)
def test_answers_end_before_a_stop_and_are_stripped(model, tmp_path, text, until, expected):
    from lm_eval.api.instance import Instance

    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    prompt = "Where?"
    engine = ScriptedEngine({tuple(model.tokenizer(prompt).input_ids): ids}, {})
    request = Instance("generate_until", {}, (prompt, {"until": until, "max_gen_toks": 40}), 0)
    (found,) = engine_lm(model, tmp_path, lambda: engine).generate_until([request])
    assert found == expected


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]


@pytest.mark.parametrize("style", TEMPLATES)
def test_system_prompt_is_in_the_conversation_or_refused(model, tmp_path, style):
    """The Mistral templates refuse the role; one that leaves it out is refused here."""
    language_model = engine_lm(replace(model, tokenizer=tiny_tokenizer(style)), tmp_path)
    if style.startswith("mistral"):
        with pytest.raises(InputError, match="the system prompt, or the introduction of a task"):
            language_model.apply_chat_template(SYSTEM)
        return
    assert "Be brief." in language_model.apply_chat_template(SYSTEM)
    silent = copy.deepcopy(tiny_tokenizer(style))
    silent.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    language_model = engine_lm(replace(model, tokenizer=silent), tmp_path)
    assert language_model.apply_chat_template(SYSTEM[1:]) == "Where?"
    with pytest.raises(InputError, match="leaves out the system prompt"):
        language_model.apply_chat_template(SYSTEM)


def test_the_template_is_told_what_the_evaluation_says(tmp_path):
    """So the questions of Qwen3 ask for an answer without a thought; in plain text there is no template to tell."""
    directory, told = save_tiny(tmp_path / "qwen3", "qwen3"), {"enable_thinking": False}
    named, fixed = [str(directory)], {"day": DAY, "max_length": None}
    (opened,) = models.open_models(named, EngineOptions(), chat_template=True, template_kwargs=told, **fixed)
    assert opened.identity["chat_template_kwargs"] == told
    asked = plan.Evaluation(
        models=(str(directory),), benchmarks=(), output=tmp_path, engine=EngineOptions(), day=DAY, template_kwargs=told
    )
    reader = plan.reader_of(asked, opened)
    assert reader.apply_chat_template(SYSTEM).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(InputError, match="--chat-template-kwargs"):
        models.open_models(named, EngineOptions(), chat_template=True, **fixed)
    with pytest.raises(InputError, match="no question goes through the chat template; leave out chat_template_kwargs"):
        models.open_models(named, EngineOptions(), chat_template=False, template_kwargs=told, **fixed)


def test_begin_token_is_never_doubled(model, tmp_path):
    language_model = engine_lm(model, tmp_path)
    begin = model.tokenizer.bos_token_id
    text = language_model.apply_chat_template([{"role": "user", "content": "Where?"}])
    ids = language_model.tok_encode(text)
    assert ids.count(begin) == (begin is not None)
    if begin is not None:
        assert language_model.tok_encode("Where?")[0] == ids[0] == begin
