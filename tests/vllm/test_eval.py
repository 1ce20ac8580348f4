"""`longpo eval` with vLLM: the same answers and log-likelihoods as with transformers, several models in one process."""

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import benchmark_data

from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.settings import EngineSettings, TransformersSettings, VllmSettings
from nemo_longpo.evaluation import evaluate, plan, suites, workload

CACHE_BYTES = 128 << 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three questions on each of two books, and rows of two short benchmarks."""
    folder = benchmark_data.write_short(tmp_path_factory.mktemp("data"), ["anatomy"], count=3)
    books = [benchmark_data.BOOK, benchmark_data.BOOK.replace("boat", "train")]
    rows = [
        {"prompt": f"{books[number % 2]} Where from was day {number}?", "answers": [benchmark_data.PLACES[number]]}
        for number in range(6)
    ]
    benchmark_data.write_rows(folder / "books.jsonl", rows)
    return folder


def options(engine: str) -> EngineOptions:
    common = EngineSettings(engine=engine)
    if engine == "vllm":
        return EngineOptions(common, vllm=VllmSettings(kv_cache_memory_bytes=CACHE_BYTES))
    return EngineOptions(common, TransformersSettings(device="cpu"))


def evaluation(models, data, output, engine):
    return plan.Evaluation(
        models=tuple(models),
        benchmarks=tuple(suites.choose([str(data / "books.jsonl"), "arc_challenge", "hellaswag"])),
        output=output,
        engine=options(engine),
        data=data,
        day=date(2026, 1, 1),
    )


@pytest.fixture(scope="module")
def talkative(mistral, tmp_path_factory):
    """A model whose answers differ from question to question, and do not repeat one token."""
    directory = shutil.copytree(mistral, tmp_path_factory.mktemp("talkative") / "model")
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, scale in (("lm_head.weight", 0.3), ("model.embed_tokens.weight", 1.0)):
        weights[name] = scale * torch.randn(weights[name].shape, generator=generator)
    safetensors.torch.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def found(talkative, qwen2, data, tmp_path_factory):
    """What two models answer on both engines, and what vLLM says that this took."""
    used = []
    models = [f"talkative={talkative}", f"qwen2={qwen2}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload.Progress, "__call__", lambda self, usage: used.append(usage))
        scores = {
            engine: evaluate.evaluate(evaluation(models, data, tmp_path_factory.mktemp(engine), engine))
            for engine in ("transformers", "vllm")
        }
    return scores, used


def test_both_backends_answer_alike(found):
    """Greedy answers word by word, log-likelihoods within 1e-4; scores therefore too."""
    scores, _ = found
    texts, choices = [], 0
    for one, other in zip(scores["transformers"], scores["vllm"], strict=True):
        assert one.label == other.label
        assert one.identity["model"] == other.identity["model"]
        for task, same in zip(one.tasks, other.tasks, strict=True):
            for sample, twin in zip(task.samples, same.samples, strict=True):
                assert (sample.id, sample.prompt_hash, sample.score) == (twin.id, twin.prompt_hash, twin.score)
                if task.benchmark == "books":
                    assert sample.answer == twin.answer
                    texts.append(sample.answer)
                else:
                    assert twin.answer == pytest.approx(sample.answer, abs=1e-4)
                    choices += len(sample.answer)
    assert len(texts) == 2 * 6
    assert len(set(texts[:6])) >= 2
    assert max(len(set(text)) for text in texts) > 10
    assert choices == 2 * (3 * 4 + 3 + 4 + 3)


def test_two_models_answer_for_themselves(found):
    """The second one is loaded after the first has gone, in the same process."""
    scores, _ = found
    talkative, qwen2 = scores["vllm"]
    assert [sample.answer for task in talkative.tasks for sample in task.samples] != [
        sample.answer for task in qwen2.tasks for sample in task.samples
    ]


def test_what_vllm_is_asked_in_one_call_shares_its_cache(found):
    _, used = found
    half = len(used) // 2
    assert sum(usage.cached_prompt_tokens for usage in used[half:]) > 1000


_TWO_PROCESSES = """
import sys, multiprocessing
from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.settings import EngineSettings, VllmSettings
from nemo_longpo.data_tools.engines.vllm_engine import VllmEngine
if __name__ == "__main__":
    for directory in sys.argv[1:]:
        engine = VllmEngine(directory, EngineSettings(), VllmSettings(kv_cache_memory_bytes=128 << 20))
        running = len(multiprocessing.active_children())
        engine.generate([[5, 6, 7]], Sampling(max_new_tokens=2, stop_ids=frozenset()), [0], lambda _: None)
        engine.close()
        print("processes", running, len(multiprocessing.active_children()))
"""


def test_closing_ends_the_process_that_holds_the_memory(mistral, qwen2, tmp_path):
    """As on a GPU, where vLLM runs the model in a process of its own."""
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES)
    done = subprocess.run(
        [sys.executable, str(script), str(mistral), str(qwen2)],
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("processes")] == ["processes 1 0"] * 2


def test_an_answer_is_kept_before_the_call_ends(mistral, data, tmp_path, monkeypatch):
    """What a kill in the middle of vLLM's only call would leave."""
    asked = evaluation([f"mistral={mistral}"], data, tmp_path, "vllm")
    done = []

    def stop(self, key):
        done.append(key)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(workload.Progress, "answered", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(asked)
    (path,) = Path(tmp_path / "answers").iterdir()
    assert [json.loads(line)[0] for line in path.read_text().splitlines()] == done
    monkeypatch.undo()
    (scores,) = evaluate.evaluate(asked)
    assert [len(task.samples) for task in scores.tasks] == [6, 3, 3]
