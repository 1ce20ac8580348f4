"""All stages from documents to shards by the command line; numbers are compared with plain Hugging Face."""

import json
import os
import re
import signal
import subprocess

import numpy as np
import pytest
import torch
from support.small_corpus import save_stopping_model
from support.waiting import wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_longpo.shards.fingerprint import tokenizer_fingerprint
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import spans_to_mask

pytestmark = pytest.mark.slow

ANYTHING = ("--no-check-requests",)  # models of random numbers write no requests


def run_stages(longpo, corpus, model, work):
    """chunk … filter; returns the reports by stage."""
    sampling = ("--temperature", 1, "--max-new-tokens", 60)
    commands = [
        ("chunk", "--input", corpus, "--model", model, "--chunk-tokens", 128, "--part-size", 3),
        ("instruct", "--input", work / "chunk", "--model", model, "--pool-size", 1, *sampling[:-1], 20, *ANYTHING),
        ("respond", "--input", work / "instruct", "--model", model, *sampling),
        ("filter", "--input", work / "respond"),
    ]
    reports = {}
    for command in commands:
        status, out, err = longpo(*command, "--output", work / command[0], "--json")
        assert status == 0, err
        reports[command[0]] = json.loads(out)["report"]
    return reports


@pytest.fixture(scope="module", params=["mistral", "qwen2"])
def family_model(request, tmp_path_factory):
    return save_stopping_model(tmp_path_factory.mktemp("model"), request.param)


def read_jsonl(directory):
    return [json.loads(line) for path in sorted(directory.glob("part*")) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ref_context", ["short", "long"])
def test_documents_to_shards(longpo, corpus, family_model, tmp_path, ref_context):
    reports = run_stages(longpo, corpus, family_model, tmp_path)
    assert reports["chunk"]["documents_in"] == 7
    filtered = reports["filter"]
    dropped = sum(count for name, count in filtered.items() if name.startswith("dropped"))
    assert filtered["turns_in"] == filtered["turns_out"] + dropped
    assert filtered["turns_out"] >= 4
    score = ("score", "--pairs", tmp_path / "filter", "--model", family_model, "--output", tmp_path / "score")
    assert longpo(*score, "--ref-context", ref_context)[0] == 0
    pack = ("pack", "--pairs", tmp_path / "score", "--model", family_model, "--output", tmp_path / "shards")
    status, out, _ = longpo(*pack, "--max-records", 2)
    assert (status, out) == (0, f"pack: documents out {filtered['documents_out']}; written to {tmp_path / 'shards'}\n")
    status, out, _ = longpo("inspect", tmp_path / "shards", "--verify", "--json")
    summary = json.loads(out)
    assert summary["verified"]
    assert summary["counts"]["turns"] == filtered["turns_out"]
    assert longpo("inspect", tmp_path / "shards")[1].splitlines()[0].endswith(str(tmp_path / "shards"))
    tokenizer = AutoTokenizer.from_pretrained(family_model)
    reader = ShardReader(tmp_path / "shards", tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(family_model).eval()
    pairs = read_jsonl(tmp_path / "filter")
    assert [record.doc_id for record in reader] == [pair["doc_id"] for pair in pairs]
    for record, pair in zip(reader, pairs, strict=True):
        assert record.ref_context == ref_context
        check = check_short if ref_context == "short" else check_long
        for name in ("chosen", "rejected"):
            check(record, pair, name, tokenizer, model)
        check_mask(record, pair, tokenizer)


def direct_logps(model, ids):
    """float64 log p(x_t | x_<t) for every t ≥ 1."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def check_short(record, pair, name, tokenizer, model):
    """Stored log-probs equal a direct forward over template(chunk, instruction) + answer + end of turn."""
    for turn, logps in zip(pair["turns"], getattr(record, f"ref_{name}_logps"), strict=True):
        message = {"role": "user", "content": f"{turn['chunk']}\n\n{turn['instruction']}"}
        prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True)
        answer = [*turn[f"{name}_token_ids"], tokenizer.eos_token_id]
        expected = direct_logps(model, prompt + answer)[-len(answer) :]
        np.testing.assert_allclose(logps, expected, atol=2e-4, rtol=1e-5)


def check_long(record, pair, name, tokenizer, model):
    """The same over the whole long sequence of the record."""
    ids = record.trunk_ids.tolist() + getattr(record, f"{name}_ids").tolist()
    expected = direct_logps(model, ids)
    trunk = len(record.trunk_ids)
    spans = getattr(record, f"{name}_spans")
    for (start, end), logps, turn in zip(spans, getattr(record, f"ref_{name}_logps"), pair["turns"], strict=True):
        assert ids[trunk + start : trunk + end] == [*turn[f"{name}_token_ids"], tokenizer.eos_token_id]
        np.testing.assert_allclose(logps, expected[trunk + start - 1 : trunk + end - 1], atol=2e-4, rtol=1e-5)


def check_mask(record, pair, tokenizer):
    """The NLL keeps the user's message of the trunk and, of the branch, answers and instructions: no template text."""
    trunk = len(record.trunk_ids)
    kept = ~spans_to_mask(record.nll_ignore_spans, trunk + len(record.chosen_ids))
    user = f"{pair['document']}\n\n{pair['turns'][0]['instruction']}"
    assert tokenizer.decode(record.trunk_ids[kept[:trunk]]).strip() == user.strip()
    expected = []
    for turn, (start, end) in zip(pair["turns"], record.chosen_spans, strict=True):
        expected += [turn["instruction"], tokenizer.decode(record.chosen_ids[start:end])]
        assert expected[-1].endswith(tokenizer.eos_token)
    found = tokenizer.decode(record.chosen_ids[kept[trunk:]])
    assert _plain(found) == _plain("".join(expected[1:]))


def _plain(text):
    """Without spaces; broken characters that meet are one, since their bytes decode together."""
    return re.sub("\ufffd+", "\ufffd", text.replace(" ", ""))


def test_own_pairs_as_text(longpo, model_dir, tmp_path):
    """Pairs without token ids, from someone's own file: the text is tokenised, and the shards say so."""
    turn = {"chunk": "A small boat.", "instruction": "Who?", "chosen": "The old clock", "rejected": "One letter"}
    pair = {"doc_id": "mine", "document": "A small boat. The river.", "turns": [turn, turn | {"instruction": "Why?"}]}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair) + "\n")
    assert longpo("score", "--pairs", path, "--model", model_dir, "--output", tmp_path / "scored")[0] == 0
    pack = ("pack", "--pairs", tmp_path / "scored", "--model", model_dir, "--output", tmp_path / "shards")
    assert longpo(*pack)[0] == 0
    record = ShardReader(tmp_path / "shards")[0]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    messages = [
        {"role": "user", "content": "A small boat. The river.\n\nWho?"},
        {"role": "assistant", "content": "The old clock"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "The old clock"},
    ]
    assert [*record.trunk_ids, *record.chosen_ids] == tokenizer.apply_chat_template(messages)
    assert record.turns == 2


def test_killed_stage_resumes_to_the_same_bytes(longpo, programs, nemo_process, corpus, model_dir, tmp_path):
    """SIGKILL in the middle of `respond`, then the same command again."""
    run_stages(longpo, corpus, model_dir, tmp_path)
    words = ["respond", "--input", tmp_path / "instruct", "--model", model_dir, "--temperature", 1]
    words += ["--max-new-tokens", 60, "--output", tmp_path / "killed"]
    command = [programs / "longpo", "data", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "killed" / "part-00000.jsonl").exists() or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    nemo_process.wait_for_forks()
    assert len(list((tmp_path / "killed").glob("part*"))) < 3
    assert longpo(*words)[0] == 0
    names = [path.name for path in (tmp_path / "respond").iterdir()]
    assert len([name for name in names if name.startswith("part")]) == 3
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "respond" / name).read_bytes()
