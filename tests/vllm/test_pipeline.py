"""Documents to shards through the command line with `--engine vllm`."""

import json
import shutil

import pytest
from support.small_corpus import declare_ends, make_document

from nemo_longpo.cli import main


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    directory.mkdir()
    for index in range(5):
        (directory / f"document-{index}.txt").write_text(make_document(index, 7 + index), encoding="utf-8")
    return directory


@pytest.fixture
def longpo(capfd):
    """Run `longpo data …` in this process; standard output must be the JSON report and nothing else."""

    def run(*words: object) -> dict[str, int]:
        capfd.readouterr()
        status = main(["data", *(str(word) for word in words), "--json"]) or 0
        captured = capfd.readouterr()
        assert status == 0, captured.err
        return json.loads(captured.out)

    return run


@pytest.mark.parametrize(("family", "dtype"), [("mistral", "float32"), ("qwen2", "bfloat16")])
def test_documents_to_shards(longpo, corpus, request, tmp_path, family, dtype):
    model = shutil.copytree(request.getfixturevalue(family), tmp_path / "model")
    own_end = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    ends = [own_end, *range(100, 110)]
    declare_ends(model, ends)
    engine = ("--model", model, "--engine", "vllm", "--dtype", dtype, "--kv-cache-memory-bytes", 128 << 20)
    sampling = ("--temperature", 1, "--max-new-tokens")

    def stage(name: str, before: str, *words: object) -> dict[str, int]:
        flag = "--pairs" if name in ("score", "pack") else "--input"
        return longpo(name, flag, tmp_path / before, "--output", tmp_path / name, *words)["report"]

    stage("chunk", "corpus", "--model", model, "--chunk-tokens", 128, "--part-size", 3)
    stage("instruct", "chunk", *engine, "--pool-size", 1, *sampling, 20, "--no-check-requests")
    responded = stage("respond", "instruct", *engine, *sampling, 200)
    assert responded["requests"] == 2 * responded["turns_out"]
    answers = [
        (turn[f"{name}_token_ids"], turn[f"{name}_finish_reason"])
        for path in sorted((tmp_path / "respond").glob("part-*"))
        for line in path.read_text().splitlines()
        for turn in json.loads(line)["turns"]
        for name in ("chosen", "rejected")
    ]
    assert all(not set(ids) & set(ends) for ids, _ in answers)
    assert any(reason == "stop" for _, reason in answers)
    assert all(len(ids) == 200 for ids, reason in answers if reason == "length")
    # The whole document is the same for all of its turns.
    assert responded["cached_prompt_tokens"] > responded["prompt_tokens"] / 5
    filtered = stage("filter", "respond")
    assert filtered["turns_out"] >= 4
    stage("score", "filter", *engine)
    checked = json.loads((tmp_path / "score" / "verification.json").read_text())
    assert checked["engine_dtype"] == dtype
    assert checked["engine_to_float32"]["mean"] < (1e-4 if dtype == "float32" else 0.1)
    assert (checked["huggingface_to_float32"] is None) is (dtype == "float32")
    packed = stage("pack", "score", "--model", model)
    assert packed["documents_out"] == filtered["documents_out"]
    summary = longpo("inspect", tmp_path / "pack", "--verify")
    assert summary["verified"]
    assert summary["counts"]["turns"] == filtered["turns_out"]


def test_instructions_come_as_json(longpo, corpus, mistral, tmp_path):
    """A random model writes four strings, which can be separated because they are JSON."""
    chunk = ("chunk", "--input", corpus, "--model", mistral, "--chunk-tokens", 128, "--output", tmp_path / "chunk")
    longpo(*chunk, "--chunks-per-document", 1)
    words = ("--temperature", 1, "--max-new-tokens", 2000, "--kv-cache-memory-bytes", 128 << 20)
    report = longpo(
        *("instruct", "--input", tmp_path / "chunk", "--output", tmp_path / "instruct", "--model", mistral),
        *("--engine", "vllm", *words, "--no-check-requests", "--lead-in-probability", 0),
    )["report"]
    assert report["turns_out"] == 5
    for line in (tmp_path / "instruct" / "part-00000.jsonl").read_text().strip().split("\n"):
        (turn,) = json.loads(line)["turns"]
        assert turn["instruction_answer"].startswith('["')
        assert len(turn["instruction_pool"]) == 4


def test_too_long_request_is_refused_with_place(mistral, tmp_path, capsys):
    turn = {"chunk": "A small boat.", "instruction": "Who?", "chosen": "The old clock", "rejected": "One letter"}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"doc_id": "a", "document": "A small boat. The river.", "turns": [turn]}) + "\n")
    words = ["data", "score", "--pairs", pairs, "--model", mistral, "--output", tmp_path / "scored"]
    words += ["--engine", "vllm", "--max-model-len", 16, "--kv-cache-memory-bytes", 128 << 20]
    assert main([str(word) for word in words]) == 2
    assert f"{pairs}, line 1: " in capsys.readouterr().err
    assert not (tmp_path / "scored").exists()
