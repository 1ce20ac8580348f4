"""RULER's official words, read from the installed harness, and its lists of words, from the package wonderwords.

The harness has them as constants and f-strings of its modules, whose import looks for data of nltk on the network. So
their source is read, not run.
"""

import ast
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from nemo_longpo.errors import InputError

from . import wording as words

Found = TypeVar("Found")


@cache
def official() -> words.Wording:
    """The official words. Raises InputError if the harness or wonderwords is not there, or not as it should be."""
    niah, needle = _Source("niah_utils"), _Source("prepare_niah")
    prefix_of_one, prefix = needle.f_strings("generate_samples", "The special")
    template = niah.text("TEMPLATE")
    repeat = next(text for text in needle.texts("haystack") if " " in text)
    # The harness's own rule for one answer.
    one = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
    chains, lists, codes, papers = (_Source(f"{name}_utils") for name in ("vt", "cwe", "fwe", "qa"))
    first, link = chains.f_strings("generate_chains", "VAR")
    tracking = chains.config["variable_tracking"]
    return words.Wording(
        needles=words.NeedleWords(
            template=template,
            template_of_one=one,
            needle=needle.text("NEEDLE"),
            repeat=repeat,
            prefix=prefix.format("{type_needle_v}", "{query}"),
            prefix_of_one=prefix_of_one.format("{type_needle_v}", "{query}"),
        ),
        chains=words.ChainWords(
            template=tracking["template"],
            prefix=tracking["answer_prefix"].strip(),
            first=first.format("{variable}", "{value}"),
            link=link.format("{variable}", "{previous}"),
            noises=(chains.text("noise"),),
            example=True,
        ),
        common_words=words.ListWords(
            template=lists.config["template"],
            prefix=lists.config["answer_prefix"].strip(),
            words=tuple(_shuffled_words()),
            item=lists.f_strings("get_example", "")[0].format("{number}", "{word}"),
            example=True,
        ),
        frequent_words=words.CodeWords(
            template=codes.config["template"], prefix=codes.config["answer_prefix"].strip(), noise="..."
        ),
        documents=words.DocumentWords(
            template=papers.config["template"],
            prefix=papers.config["answer_prefix"].strip(),
            document=papers.text("DOCUMENT_PROMPT"),
        ),
    )


class _Source:
    """The constants of one module of the harness's RULER tasks, read from its text."""

    def __init__(self, module: str):
        found = find_spec("lm_eval")
        if found is None or found.origin is None:
            raise InputError(
                "RULER's prompts are those of lm_eval, which is not installed; pip install lm_eval==0.4.13"
            )
        self._path = Path(found.origin).parent / "tasks" / "ruler" / f"{module}.py"
        try:
            self._tree = ast.parse(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._unexpected() from error

    def text(self, name: str) -> str:
        return next(iter(self.texts(name)))

    def texts(self, name: str) -> list[str]:
        """Every text that is assigned to a name, anywhere in the module."""
        return self._some([value for value in self._assigned(name) if isinstance(value, str)])

    @property
    def config(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = [value for value in self._assigned("CONFIG") if isinstance(value, dict)]
        return self._some(found)[0]

    def f_strings(self, function: str, beginning: str) -> list[str]:
        """The f-strings of a function, in order, with {} for each value."""
        body = next((n for n in ast.walk(self._tree) if isinstance(n, ast.FunctionDef) and n.name == function), None)
        nodes = [node for node in ast.walk(body) if isinstance(node, ast.JoinedStr)] if body else []
        nodes.sort(key=lambda node: node.lineno)
        texts = ["".join(_plain(part) for part in node.values) for node in nodes]
        return self._some([text for text in texts if text.startswith(beginning)])

    def _assigned(self, name: str) -> Iterator[Any]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
                try:
                    yield ast.literal_eval(node.value)
                except ValueError:  # computed
                    continue

    def _some(self, found: list[Found]) -> list[Found]:
        if not found:
            raise self._unexpected()
        return found

    def _unexpected(self) -> InputError:
        return InputError(
            f"{self._path} does not hold RULER's prompts where lm_eval 0.4.13 has them; install lm_eval==0.4.13"
        )


def _plain(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "{}"


@cache
def _words_of(kind: str) -> tuple[str, ...]:
    try:
        import wonderwords
    except ImportError as error:
        raise InputError(
            "RULER's words are those of wonderwords, which is not installed; pip install wonderwords==3.0.1"
        ) from error
    return tuple(wonderwords.RandomWord()._categories[kind])


def _shuffled_words() -> list[str]:
    words = sorted({word for kind in ("noun", "adjective", "verb") for word in _words_of(kind)})
    random.Random(42).shuffle(words)
    return words


class WordPairs(Sequence[str]):
    """All words "adjective-noun" in order, six million, of which only the few that are drawn are made.

    They are in order by adjective, except where one adjective with its hyphen begins another ("ill-", "ill-fated-").
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]):
        self._nouns = sorted(set(nouns))
        self._groups: list[list[str]] = []
        for head in sorted({f"{adjective}-" for adjective in adjectives}):
            if self._groups and head.startswith(self._groups[-1][0]):
                self._groups[-1].append(head)
            else:
                self._groups.append([head])
        self._starts = list(accumulate((len(group) * len(self._nouns) for group in self._groups), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        number = bisect_right(self._starts, index) - 1
        heads, place = self._groups[number], index - self._starts[number]
        if len(heads) == 1:
            return heads[0] + self._nouns[place]
        return sorted(head + noun for head in heads for noun in self._nouns)[place]


@cache
def word_pairs() -> WordPairs:
    """RULER's keys of the type "words"."""
    return WordPairs(_words_of("adjectives"), _words_of("nouns"))
