"""Settings of questions and of the judge. Nothing heavy is imported here, so that `--help` is instant."""

import os
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nemo_longpo.data_tools.options import Settings, setting
from nemo_longpo.errors import InputError

ChatTemplateUse: TypeAlias = Literal["auto", "always", "never"]
TooLong: TypeAlias = Literal["official", "refuse", "drop"]


@dataclass(frozen=True, kw_only=True)
class QuestionSettings(Settings):
    """How a benchmark's questions become prompts, and what becomes of those that do not fit."""

    seed: int = setting(1234, "for questions and examples; 1234 is the harness's own")
    chat_template: ChatTemplateUse = setting(
        "auto", "whether questions are user messages; auto is as each benchmark does"
    )
    system_prompt: str | None = setting(None, "what stands in front of every conversation")
    too_long: TooLong = setting(
        "official",
        "what to do with a question that does not fit the model; official cuts the middle where the benchmark's own "
        "evaluation does (InfiniteBench, LongBench v2), and refuses others; the cut and the dropped are counted",
    )


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(Settings):
    """The model that rates answers, for the suite `chat`: any server with POST /chat/completions."""

    judge_model: str | None = setting(None, "the judge's name, as its server knows it")
    judge_url: str | None = setting(None, "its server, such as https://api.openai.com/v1", recorded=False)
    judge_key_env: str | None = setting(
        None, "environment variable with the server's key; without it none is sent", recorded=False
    )
    judge_price: tuple[float, ...] = setting(
        (),
        "for --dry-run: price of a million tokens that the judge reads, and of a million that it writes",
        recorded=False,
    )
    judge_max_tokens: int = setting(2048, "longest reply of the judge", minimum=1)
    judge_concurrency: int = setting(8, "most requests to the judge at once", minimum=1, recorded=False)
    judge_timeout: float = setting(
        300.0, "seconds until a request to the judge counts as lost", above=0, recorded=False
    )
    judge_retries: int = setting(
        10, "tries after a failed request to the judge, with growing pauses", minimum=0, recorded=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.judge_price) not in (0, 2) or not all(0 <= price < 1e9 for price in self.judge_price):
            raise InputError("judge_price takes two prices, as in --judge-price 2.5 10: for reading and for writing")

    def key(self) -> "Key":
        """Read the key. Raises InputError if its variable is empty, or holds what no request can carry."""
        if self.judge_key_env is None:
            return Key("", "if it needs a key, name the variable that holds it with --judge-key-env")
        value = os.environ.get(self.judge_key_env, "").strip()
        if not value:
            raise InputError(
                f"the environment variable {self.judge_key_env} holds no key for the judge; set it, or leave out "
                "--judge-key-env if the server needs none"
            )
        if not (value.isascii() and value.isprintable()):
            raise InputError(f"the key in {self.judge_key_env} holds characters that no request can carry; set it anew")
        return Key(value, f"correct the key in {self.judge_key_env}")


@dataclass(frozen=True)
class Key:
    """A key that is never shown, and what to do if the server refuses it."""

    value: str = field(repr=False)
    advice: str

    def hidden(self, text: str) -> str:
        """The text without the key, which some servers repeat in what they say."""
        return text.replace(self.value, "***") if self.value else text
