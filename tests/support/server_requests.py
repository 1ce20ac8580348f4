"""Requests to fake servers, and the answers that they get."""

import random

from nemo_longpo.data_tools.engines.engine import Completion, Sampling
from nemo_longpo.data_tools.runner.progress import Usage

from .fake_vllm import STOP, VOCAB_SIZE, written

GREEDY = Sampling(max_new_tokens=6, stop_ids=frozenset({STOP}))
DRAW = random.Random(0)
PROMPTS = [[DRAW.randrange(3, VOCAB_SIZE) for _ in range(DRAW.randrange(4, 30))] for _ in range(40)]


def expected(prompt, max_tokens=GREEDY.max_new_tokens):
    ids, reason = written(prompt, max_tokens)
    return Completion(ids[:-1] if reason == "stop" else ids, reason)


def ignore(_: Usage) -> None:
    pass


def generate(engine, prompts=PROMPTS, sampling=GREEDY, tick=ignore):
    return engine.generate(prompts, sampling, range(len(prompts)), tick)
