"""Every answer is kept as it comes: what a kill loses, what the next run asks, and what a file of answers may hold."""

from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_models import tiny_tokenizer

from nemo_longpo.data_tools.engines.engine import Completion
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.language_model import Answers, EngineLM


class Killed(Exception):
    pass


class Engine:
    """Repeats the last token of a prompt, in the order of the prompts; dies after `most` requests."""

    def __init__(self, most=1000):
        self.most, self.asked, self.calls, self.spans, self.closed = most, [], [], [], 0

    def _each(self, requests, wanted, done, answer):
        self.calls.append((len(requests), list(wanted)))
        for index in sorted(wanted):
            if len(self.asked) == self.most:
                raise Killed
            self.asked.append(list(requests[index]))
            done(index, answer(requests[index]))

    def generate(self, prompts, sampling, seeds, tick, done, wanted):
        self._each(prompts, wanted, done, lambda prompt: Completion([prompt[-1]] * 2, "length"))

    def score(self, sequences, spans, tick, done, wanted):
        self.spans += [spans[index][0] for index in wanted]
        self._each(sequences, wanted, done, lambda sequence: [np.array([-0.5, -0.25], dtype=np.float32)])

    def close(self):
        self.closed += 1


TOKENIZER = tiny_tokenizer("mistral-v0.2")


def language_model(directory, engine, **identity):
    answers = Answers(directory, {"model": "tiny"} | identity)
    return EngineLM(TOKENIZER, frozenset({2}), answers, lambda: engine, lambda _: None, date(2026, 1, 1))


def questions(words, tokens=2):
    return [
        SimpleNamespace(request_type="generate_until", args=(f"A boat {word}", {"max_gen_toks": tokens, "until": []}))
        for word in words
    ]


def test_a_kill_loses_only_what_was_not_answered(tmp_path):
    asked = questions(["one", "two", "three", "two", "four"])
    whole = language_model(tmp_path / "whole", Engine()).generate_until(asked)
    dying = Engine(most=2)
    with pytest.raises(Killed):
        language_model(tmp_path / "killed", dying).generate_until(asked)
    again = Engine()
    assert language_model(tmp_path / "killed", again).generate_until(asked) == whole
    # The engine sees all four distinct questions, and is asked the two that are left.
    assert again.calls == [(4, [2, 3])]
    assert dying.asked + again.asked == [
        TOKENIZER(f"A boat {word}")["input_ids"] for word in ["one", "two", "three", "four"]
    ]
    (one,), (other,) = (list((tmp_path / name).iterdir()) for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    idle = Engine()
    assert language_model(tmp_path / "killed", idle).generate_until(asked) == whole
    assert idle.calls == []


def test_log_likelihoods_are_kept_too(tmp_path):
    choices = [SimpleNamespace(request_type="loglikelihood", args=("A boat", f" {word}")) for word in ("one", "two")]

    def ask(engine):
        model = language_model(tmp_path, engine)
        return model.answer(choices, [model.read(choice) for choice in choices])

    dying = Engine(most=1)
    with pytest.raises(Killed):
        ask(dying)
    again = Engine()
    assert ask(again) == [(-0.75, False)] * 2
    assert dying.asked + again.asked == [TOKENIZER(f"A boat {word}")["input_ids"] for word in ("one", "two")]
    assert again.spans == [(len(TOKENIZER("A boat")["input_ids"]), len(again.asked[0]))]


def test_other_limits_and_models_are_asked_again(tmp_path):
    for number, (tokens, identity) in enumerate([(2, {}), (3, {}), (3, {"dtype": "bfloat16"})]):
        engine = Engine()
        language_model(tmp_path, engine, **identity).generate_until(questions(["one"], tokens))
        assert len(engine.asked) == 1, number


def test_a_cut_line_is_taken_away_and_a_damaged_file_refused(tmp_path):
    asked = questions(["one", "two"])
    language_model(tmp_path, Engine()).generate_until(asked)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    again = Engine()
    language_model(tmp_path, again).generate_until(asked)
    assert len(again.asked) == 1
    assert path.read_bytes() == content
    path.write_bytes(b"?" + content)
    with pytest.raises(InputError, match="is damaged"):
        language_model(tmp_path, Engine())


def test_closing_gives_the_engine_back(tmp_path):
    engine = Engine()
    model = language_model(tmp_path, engine)
    model.close()
    model.generate_until(questions(["one"]))
    model.close()
    model.close()
    assert engine.closed == 1
