"""Settings check themselves, and are read from a command line or a mapping."""

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.options import Settings, add_settings, setting, settings_from
from nemo_longpo.errors import InputError


@dataclass(frozen=True)
class Sample(Settings):
    count: int = setting(2, "how many", minimum=1)
    share: float = setting(0.5, "how much", above=0, maximum=1)
    limit: int | None = setting(None, "at most", minimum=1)
    mode: Literal["fast", "slow"] = setting("fast", "how", recorded=False)
    strict: bool = setting(False, "whether")
    names: tuple[str, ...] = setting((), "who")


def parse(*words):
    parser = argparse.ArgumentParser()
    add_settings(parser, Sample)
    return settings_from(Sample, vars(parser.parse_args(words)))


def test_flags_of_every_kind():
    words = ["--count", "3", "--share", "0.25", "--limit", "7", "--mode", "slow", "--strict", "--names", "a", "b"]
    assert parse(*words) == Sample(count=3, share=0.25, limit=7, mode="slow", strict=True, names=("a", "b"))
    assert parse() == Sample()
    assert parse("--no-strict") == Sample()


def test_settings_without_effect_are_not_recorded():
    assert Sample().recorded() == {"count": 2, "share": 0.5, "limit": None, "strict": False, "names": ()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count 0 must be at least 1"),
        ({"count": "3"}, "count must be of type int, not '3'"),
        ({"count": True}, "count must be of type int, not True"),
        ({"count": None}, "count must be of type int, not None"),
        ({"share": 0}, "share 0 must be above 0"),
        ({"share": 1.5}, "share 1.5 must be at most 1"),
        ({"limit": 0}, "limit 0 must be at least 1"),
        ({"mode": "quick"}, "mode 'quick' is not known; use one of fast, slow"),
        ({"strict": 1}, "strict must be of type bool, not 1"),
        ({"names": [1]}, "names must be a list of str values"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(InputError, match=message):
        settings_from(Sample, values)


def test_settings_of_another_engine_are_refused():
    with pytest.raises(InputError, match="base_url is a setting of engine server, but the engine is transformers"):
        EngineOptions.from_mapping({"base_url": ["http://127.0.0.1:1"]})
    assert EngineOptions.from_mapping({"engine": "vllm", "max_model_len": 4096}).vllm.max_model_len == 4096
