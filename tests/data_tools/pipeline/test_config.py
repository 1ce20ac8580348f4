"""The file of `longpo data run`: valid content, and one sentence for each invalid one."""

import pytest

from nemo_longpo.data_tools.pipeline.config import load_pipeline
from nemo_longpo.errors import InputError

GOOD = """
x-vllm: &vllm {engine: vllm, dtype: bfloat16}
input: [books, papers.jsonl]
model: MODEL
output: work
executors:
  gpu: {type: SlurmExecutor, account: team}
stages:
  filter: {num_workers: 2}
  instruct: {<<: *vllm, temperature: 0.5, executor: gpu, processes: 4}
  respond: {<<: *vllm, env: {CUDA_VISIBLE_DEVICES: "{rank}"}}
  chunk: {chunk_tokens: 100}
"""


def load(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    return load_pipeline(path)


def words(stage):
    return " ".join(stage.call.words())


def test_stages_are_ordered_and_connected(tmp_path):
    pipeline = load(tmp_path, GOOD)
    chunk, instruct, respond, filtered = pipeline.stages
    assert words(chunk) == (
        "data chunk --input books papers.jsonl --model MODEL --output work/chunk --chunk-tokens 100"
    )
    assert words(instruct) == (
        "data instruct --input work/chunk --model MODEL --output work/instruct --engine vllm --dtype bfloat16 "
        "--temperature 0.5"
    )
    assert (instruct.launch.executor, instruct.launch.processes) == ("gpu", 4)
    assert respond.env == {"CUDA_VISIBLE_DEVICES": "{rank}"}
    assert words(filtered) == "data filter --input work/respond --output work/filter --num-workers 2"


def test_another_model_may_write_the_instructions(tmp_path):
    chunk, instruct, respond, _ = load(tmp_path, GOOD.replace("temperature: 0.5", "model: OTHER")).stages
    assert words(instruct) == (
        "data instruct --input work/chunk --model OTHER --output work/instruct --engine vllm --dtype bfloat16"
    )
    assert chunk.call.model_given == respond.call.model_given
    with pytest.raises(InputError, match=r"stages\.respond: unknown key 'model'"):
        load(tmp_path, GOOD.replace("respond: {<<: *vllm,", "respond: {<<: *vllm, model: OTHER,"))
    with pytest.raises(InputError, match=r"stages.instruct: key 'model' must be text, not \[1\]"):
        load(tmp_path, GOOD.replace("temperature: 0.5", "model: [1]"))


def test_run_from_a_later_stage_with_own_prompts(tmp_path):
    text = "input: pairs.jsonl\nmodel: M\noutput: w\nprompts: p.json\nstages: {score: {ref_context: long}, pack: }\n"
    pipeline = load(tmp_path, text)
    score, pack = pipeline.stages
    assert words(score) == (
        "data score --pairs pairs.jsonl --model M --prompts p.json --output w/score --ref-context long"
    )
    assert words(pack) == "data pack --pairs w/score --model M --output w/shards"


def test_own_pairs_are_filtered_with_the_model(tmp_path):
    text = "input: pairs.jsonl\nmodel: M\noutput: w\nstages: {filter: , score: }\n"
    pipeline = load(tmp_path, text)
    assert words(pipeline.stages[0]) == "data filter --input pairs.jsonl --model M --output w/filter"


def test_a_date_needs_no_quotes(tmp_path):
    """Without them YAML reads a date, not a text."""
    pipeline = load(tmp_path, GOOD.replace("  filter:", "  respond: {chat_date: 2026-03-31}\n  x:").split("  x:")[0])
    assert words(pipeline.stages[0]).endswith("--chat-date 2026-03-31")


def test_published_pairs_are_scored_and_packed(tmp_path):
    text = "input: [hf:owner/name]\nmodel: M\noutput: w\nstages: {pack: , import-hf: {split: test}, score: }\n"
    pipeline = load(tmp_path, text)
    imported, score, _ = pipeline.stages
    assert words(imported) == ("data import-hf --input hf:owner/name --model M --output w/import-hf --split test")
    assert words(score) == "data score --pairs w/import-hf --model M --output w/score"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: MODEL", ""), "data.yaml: key 'model' is missing"),
        (("model: MODEL", "modle: MODEL"), "data.yaml: unknown key 'modle'; did you mean 'model'"),
        (("chunk_tokens: 100", "chunk_token: 100"), r"stages.chunk: unknown key 'chunk_token'; did you mean"),
        (("chunk_tokens: 100", "chunk_tokens: 0"), "stages.chunk: chunk_tokens 0 must be at least 1"),
        (("chunk_tokens: 100", "rank: 1"), "stages.chunk: unknown key 'rank'"),
        (("temperature: 0.5", "temperature: warm"), "stages.instruct: temperature must be of type float, not 'warm'"),
        (("temperature: 0.5", "base_url: [x]"), "stages.instruct: base_url is a setting of engine server"),
        (
            ("engine: vllm", "engine: server, base_url: ['http://me:secret@host/v1']"),
            "stages.instruct: base_url holds a user name or password, .*; set LONGPO_LOGIN=user:password in the",
        ),
        (("executor: gpu", "executor: cpu"), "stages.instruct: executor 'cpu' is not among local, gpu"),
        (("processes: 4", "processes: 0"), "stages.instruct: processes 0 must be at least 1"),
        (("type: SlurmExecutor, ", ""), "executors.gpu must be a mapping with a 'type'"),
        (("  chunk: {chunk_tokens: 100}", "  pack:"), "stages: 'score' is missing between 'instruct' and 'pack'"),
        (("  chunk: {chunk_tokens: 100}", "  import-hf:"), "'import-hf' makes pairs itself; remove the stages up to"),
        (("  chunk: {chunk_tokens: 100}", "  score:\n  pack: {processes: 2}"), "stages.pack: .*in one process"),
        (("  chunk: {chunk_tokens: 100}", "  chunk: 7"), "stages.chunk must be a mapping of settings"),
        (("stages:", "stages: ["), "not readable YAML"),
        (
            ("executors:\n  gpu: {type: SlurmExecutor, account: team}", "executors: [gpu]"),
            "key 'executors' must be a map",
        ),
        (("input: [books, papers.jsonl]", "input: [{a: b}]"), "key 'input' must be text, not {'a': 'b'}"),
        (("model: MODEL", "model: [MODEL]"), r"key 'model' must be text, not \['MODEL'\]"),
        (('"{rank}"}}', "[1]}}"), r"stages.respond: env must be text, not \[1\]"),
    ],
)
def test_bad_files(tmp_path, change, message):
    assert change[0] in GOOD
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, GOOD.replace(*change))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist"):
        load_pipeline(tmp_path / "nowhere.yaml")
