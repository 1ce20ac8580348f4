"""The real vLLM as a judge: its chat completions are those that the client expects."""

import pytest
from support.server_process import ServerProcess

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.eval_settings import JudgeSettings
from nemo_longpo.evaluation.judge.client import Judge

TALKS = [[{"role": "system", "content": "You rate."}, {"role": "user", "content": f"Rate {n}."}] for n in range(6)]


@pytest.fixture(scope="module")
def server(qwen2, tmp_path_factory):
    with ServerProcess(qwen2, tmp_path_factory.mktemp("judge") / "log") as process:
        yield process


def test_replies_are_the_same_for_the_same_question(server, qwen2):
    judge = Judge(JudgeSettings(judge_model=str(qwen2), judge_url=server.url, judge_max_tokens=12))
    judge.check()
    runs = []
    for talks in (TALKS, TALKS[:1]):
        kept = {}
        judge.ask(talks, lambda index, reply, kept=kept: kept.update({index: reply}))
        runs.append(kept)
    assert sorted(runs[0]) == list(range(6))
    assert all(reply.text and reply.model == str(qwen2) for reply in runs[0].values())
    assert all(reply.usage["completion_tokens"] <= 12 for reply in runs[0].values())
    assert runs[1][0].text == runs[0][0].text


def test_another_name_is_refused_in_the_words_of_the_server(server):
    judge = Judge(JudgeSettings(judge_model="nobody", judge_url=server.url))
    with pytest.raises(InputError, match=r"chat/completions refuses the request \(status 404\): .*nobody"):
        judge.check()
