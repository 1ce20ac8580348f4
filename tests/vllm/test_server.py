"""The server engine with a real vLLM server, which is killed and started again in the middle of a run."""

import json
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from support.server_process import ServerProcess
from support.small_corpus import make_document

from nemo_longpo.cli import main
from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.engines.server import ServerEngine
from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.data_tools.runner.progress import Usage
from nemo_longpo.data_tools.settings import EngineSettings, ServerSettings

DOCUMENTS, TURNS, DOCUMENTS_PER_PART = 12, 3, 6
REQUESTS_PER_PART = 2 * TURNS * DOCUMENTS_PER_PART


@pytest.fixture(scope="module")
def server(mistral, tmp_path_factory):
    with ServerProcess(mistral, tmp_path_factory.mktemp("server") / "log") as process:
        yield process


@pytest.fixture(scope="module")
def engine(mistral, server):
    return ServerEngine(mistral, EngineSettings(), ServerSettings(base_url=(server.url,)))


def ignore(_: Usage) -> None:
    pass


def token_ids(index, length):
    return [20 + (7 * index + 3 * position) % 300 for position in range(length)]


def test_scores_equal_hugging_face_in_float32(mistral, engine):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(mistral, dtype=torch.float32).eval()
    sequences = [token_ids(index, length) for index, length in enumerate((9, 700, 64, 1023))]
    spans = [[(1, 4), (len(sequence) - 2, len(sequence))] for sequence in sequences]
    for sequence, sequence_spans, found in zip(sequences, spans, engine.score(sequences, spans, ignore), strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([sequence])).logits[0, :-1].log_softmax(-1)
        expected = logps.gather(-1, torch.tensor(sequence[1:])[:, None])[:, 0].numpy()
        for (start, end), scores in zip(sequence_spans, found, strict=True):
            np.testing.assert_allclose(scores, expected[start - 1 : end - 1], atol=1e-4)


def test_draws_depend_only_on_prompt_and_seed(engine):
    sampling = Sampling(max_new_tokens=24, stop_ids=frozenset(), temperature=1.0, top_p=0.95)
    prompts = [token_ids(index, 200 + 30 * index) for index in range(12)]
    together = engine.generate(prompts, sampling, range(12), ignore)
    backwards = engine.generate(prompts[::-1], sampling, range(11, -1, -1), ignore)[::-1]
    alone = engine.generate(prompts[4:5], sampling, [4], ignore)
    assert together == backwards
    assert alone == together[4:5]
    assert engine.generate(prompts[4:5], sampling, [5], ignore) != alone


def test_answers_follow_a_json_schema(mistral, engine):
    chat = load_chat(mistral)
    schema = {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 2, "maxItems": 2}
    sampling = Sampling(max_new_tokens=300, stop_ids=chat.stop_ids, temperature=1.0, json_schema=schema)
    for completion in engine.generate([chat.prompt(f"Boat {n}.") for n in range(3)], sampling, range(3), ignore):
        # The server leaves white space free, so an answer may use up its length with that.
        if completion.finish_reason == "stop":
            items = json.loads(chat.text(completion.ids), strict=False)
            assert [isinstance(item, str) for item in items] == [True, True]
        assert chat.text(completion.ids).startswith("[")


def respond(pairs, model, output, server):
    """Return sampled answers: they differ, so that a swap would be found."""
    words = ["--input", pairs, "--model", model, "--output", output, "--part-size", DOCUMENTS_PER_PART]
    words += ["--max-new-tokens", 24, "--temperature", 1, "--concurrency", 4]
    return main(["data", "respond", *map(str, words), "--engine", "server", "--base-url", server.url])


def kill_and_restart(server, output, parts_at_death):
    """In the middle of the second part, with requests in flight."""
    before = server.finished()
    while server.finished() < before + REQUESTS_PER_PART + 8:
        time.sleep(0.01)
    server.kill()
    parts_at_death.extend(output.glob("part-*.jsonl"))
    server.start()


def test_restarted_server_loses_no_turn(mistral, server, tmp_path, logged):
    documents = [make_document(index, 8) for index in range(DOCUMENTS)]
    records = [
        {
            "doc_id": f"document {index}",
            "document": text,
            "turns": [{"chunk": text[60 * turn : 900], "instruction": f"Say {turn}."} for turn in range(TURNS)],
        }
        for index, text in enumerate(documents)
    ]
    pairs = tmp_path / "instructed.jsonl"
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert respond(pairs, mistral, tmp_path / "calm", server) == 0

    parts_at_death: list[Path] = []
    killer = Thread(target=kill_and_restart, args=(server, tmp_path / "disturbed", parts_at_death), daemon=True)
    killer.start()
    assert respond(pairs, mistral, tmp_path / "disturbed", server) == 0
    killer.join()

    calm, disturbed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("part-*.jsonl")}
        for name in ("calm", "disturbed")
    )
    assert len(calm) == DOCUMENTS // DOCUMENTS_PER_PART
    assert [path.name for path in parts_at_death] == ["part-00000.jsonl"]
    assert f"{server.url} answers again" in logged.getvalue()
    assert disturbed == calm
    turns = [turn for part in calm.values() for line in part.splitlines() for turn in json.loads(line)["turns"]]
    assert len(turns) == DOCUMENTS * TURNS
    assert len({tuple(turn["rejected_token_ids"]) for turn in turns}) > 0.9 * len(turns)
    report = json.loads((tmp_path / "calm" / "report.json").read_text())
    assert report["requests"] == 2 * len(turns)
    assert report["cached_prompt_tokens"] > 0
