"""A judge that is told what to say, and a model that is."""

import pytest
from support.fake_judge import FakeJudge, ScriptedEngine, write_longbench_chat, write_mt_bench
from support.tiny_models import tiny_tokenizer

from nemo_longpo.data_tools.engines.server_pool import Pauses
from nemo_longpo.evaluation.eval_settings import JudgeSettings
from nemo_longpo.evaluation.judge.client import Judge


@pytest.fixture
def server():
    judge = FakeJudge()
    yield judge
    judge.kill()


@pytest.fixture
def data(tmp_path):
    return write_longbench_chat(write_mt_bench(tmp_path / "data"))


@pytest.fixture
def judge(server):
    """The judge behind the server, with settings of its own where they are given."""

    def open_judge(**settings):
        chosen = {"judge_model": "strict", "judge_url": server.url, **settings}
        return Judge(JudgeSettings(**chosen), Pauses(0.01, 0.02, longest_asked_for=0.1))

    return open_judge


@pytest.fixture
def engine():
    """Answers with the last word of its prompt."""
    return ScriptedEngine(tiny_tokenizer("qwen2.5"), lambda prompt: prompt.split()[-2])
