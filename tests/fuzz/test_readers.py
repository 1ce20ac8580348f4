"""Reading any file works or ends in InputError with one printable sentence.

Some thousands of cases, the same ones each time; `make fuzz` takes many more, other ones each time.
"""

import os
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from support.fuzz_checkpoints import CHECKPOINT_READERS
from support.fuzz_judge import JUDGE_READERS
from support.fuzz_readers import READERS, Workshop

from nemo_longpo.errors import InputError
from nemo_longpo.terminal import printable

pytestmark = pytest.mark.slow

FACTOR = float(os.environ.get("FUZZ_FACTOR", "1"))
CHEAP_CASES = 250
SHOWN = 600  # bytes of a failing input
LONGEST_ERROR = 5_000  # characters


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("workshop"))


def error_of(read, content):
    """The documented error, if there was one; any other is a failure that shows the input."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(content)
    except InputError as error:
        return error
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {str(error)[:300]} from {content[:SHOWN]!r}") from error
    return None


@pytest.fixture(autouse=True)
def nothing_of_the_project_in_the_inputs(monkeypatch):
    """Hypothesis mixes in constants of the files that it takes for the project's, which depends on where that lies."""
    monkeypatch.setattr(providers, "_get_local_constants", Constants)


@pytest.mark.parametrize("reader", [*READERS, *CHECKPOINT_READERS, *JUDGE_READERS], ids=lambda reader: reader.name)
def test_undocumented_errors_are_faults(reader, workshop):
    contents, read = reader.prepare(workshop)
    cases = max(10, int(FACTOR * CHEAP_CASES / max(1, reader.cost / 3)))

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=FACTOR == 1,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(contents)
    def run(content):
        error = error_of(read, content)
        assert error is None or (str(error) and len(printable(error)) < LONGEST_ERROR)

    run()
