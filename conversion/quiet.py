"""Libraries that talk while they are loaded, and the one line that matters."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from nemo_longpo.errors import InputError

VERBOSE = "LONGPO_VERBOSE"
"""Environment variable; 1 lets libraries talk."""

_OUT, _ERR = 1, 2


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back what the block writes to standard output and error, by whatever library in whatever way.

    It is shown after all if the block fails otherwise than by bad input.
    """
    if os.environ.get(VERBOSE, "0") != "0":
        yield
        return
    _flush()
    out, err = os.dup(_OUT), os.dup(_ERR)
    with TemporaryFile() as held:
        os.dup2(held.fileno(), _OUT)
        os.dup2(held.fileno(), _ERR)
        try:
            yield
        except InputError:
            raise
        except Exception:
            _flush()
            held.seek(0)
            os.write(err, held.read())
            raise
        finally:
            _flush()
            os.dup2(out, _OUT)
            os.dup2(err, _ERR)
            os.close(out)
            os.close(err)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
