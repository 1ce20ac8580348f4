"""A process that has imported a trainer and forks others on demand: NeMo's import takes nine seconds of processor time,
a fork next to none. It has loaded nothing of this package, so a fork begins as a new process would.

Whoever asks holds a connection for as long as the fork shall live: when it is closed, by `kill -9` too, the fork and
all that it has started are killed. Programs ask by themselves: `write_programs` makes a folder with `longpo`, `nemo`
and `python`, which tests start, or give to what starts programs.
"""

import atexit
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
from support.waiting import wait_until

# Starts in 10 ms, because it imports next to nothing. It ends as the fork does, and hands on what asks it to end.
_PROGRAM = """#!{python} -SE
import json, os, signal, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
request = json.dumps(dict(kind="program", words=sys.argv, directory=os.getcwd(), environment=dict(os.environ))).encode()
socket.send_fds(asked, [len(request).to_bytes(4, "big")], [0, 1, 2])
asked.sendall(request)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.sendall(bytes([number])))
status = int(asked.makefile().readline())
if status < 0:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def import_nemo() -> None:
    """What a training loads of others, and the models of Hugging Face.

    Consoles take their width when they are imported: they are to hold the longest names.
    """
    os.environ["COLUMNS"] = "200"
    import nemo.collections.llm  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401


def import_bridge() -> None:
    """What a training through Megatron-Bridge loads."""
    os.environ["COLUMNS"] = "200"
    import transformers.models.mistral.modeling_mistral  # noqa: F401

    import nemo_longpo.bridge.train  # noqa: F401


def import_core() -> None:
    """What our own loop loads, in an environment without NeMo."""
    import transformers.models.mistral.modeling_mistral  # noqa: F401


def import_nothing() -> None:
    """Where there is a GPU: NeMo's import asks CUDA for it, and after that no fork could use it."""


def _run_program(files: Sequence[int], words: list[str], directory: str, environment: dict[str, str]) -> None:
    """Be this environment's program of that name, or a Python."""
    for standard, file in enumerate(files):
        os.dup2(file, standard)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if configuration := sys.modules.get("nemo_run.config"):  # the one variable that is read by an import
        configuration.set_nemorun_home(environment.get("NEMORUN_HOME", "~/.nemo_run"))
    name, *sys.argv = words
    if Path(name).name != "python":
        sys.argv.insert(0, str(Path(sys.executable).with_name(Path(name).name)))
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif sys.argv[0] == "-m":
        sys.argv.pop(0)
        sys.path.insert(0, directory)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).absolute().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


def _run_rank(files: Sequence[int], rank: int) -> None:
    from support.worker_pool import serve

    serve(rank, multiprocessing.connection.Connection(files[0]))


def _end_after(function: Callable[..., None], *values: Any, **named: Any) -> NoReturn:
    """Call a function and end as Python does after a program, without what was to be done at the end of the parent."""
    atexit._clear()
    status = 0
    try:
        function(*values, **named)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if status and not isinstance(leaving.code, int):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _keep(asked: socket.socket) -> None:
    """Fork whom the connection asks for, and let it live as long as the connection does."""
    size, files, _, _ = socket.recv_fds(asked, 4, 3)
    request = json.loads(asked.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    function = {"program": _run_program, "rank": _run_rank}[request.pop("kind")]
    fork = os.fork()
    if fork == 0:
        asked.close()
        os.setsid()
        _end_after(function, files, **request)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(fork)
    while ended not in select.select([asked, ended], [], [])[0]:
        if number := asked.recv(1):
            os.kill(fork, number[0])
            continue
        for process in [psutil.Process(fork), *psutil.Process(fork).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        break
    status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with suppress(OSError):
        asked.sendall(f"{status}\n".encode())


def _reap(*_: Any) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_on_demand(
    listening: socket.socket, parent: int, overlay: str | None, prepare: Callable[..., None], arguments: dict
) -> None:
    if overlay:
        sys.path.insert(0, overlay)
    # As in a process that trains. It was started by spawn, and so would be those that it starts.
    multiprocessing.set_start_method("fork", force=True)
    os.setsid()  # Ctrl-C is for those who ask
    prepare(**arguments)
    gc.freeze()  # a million objects that no fork's collector need look at, again after every job
    signal.signal(signal.SIGCHLD, _reap)
    listening.settimeout(1)
    while os.getppid() == parent:
        with suppress(TimeoutError):
            asked, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                asked.setblocking(True)
                _end_after(_keep, asked)
            asked.close()


class PreparedProcess:
    """The process, after `prepare(**arguments)`. It begins at once; who asks meanwhile waits.

    Packages in the folder `overlay` take the place of the environment's.
    """

    def __init__(self, prepare: Callable[..., None] = import_nemo, overlay: str | None = None, **arguments: Any):
        self._folder = tempfile.TemporaryDirectory()
        self._asked: list[socket.socket] = []
        self.address = f"{self._folder.name}/socket"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)
            listening.listen(64)
            context = multiprocessing.get_context("spawn")
            values = (listening, os.getpid(), overlay, prepare, arguments)
            self._process = context.Process(target=_fork_on_demand, args=values)
            self._process.start()

    def ask(self, kind: str, files: Sequence[int], **values: Any) -> socket.socket:
        """Return the connection that keeps a fork alive; it says the exit status in a line, and ends with the fork."""
        asked = socket.socket(socket.AF_UNIX)
        asked.connect(self.address)
        request = json.dumps({"kind": kind, **values}).encode()
        socket.send_fds(asked, [len(request).to_bytes(4, "big")], files)
        asked.sendall(request)
        self._asked.append(asked)
        return asked

    def write_programs(self, folder: Path) -> Path:
        """Make `longpo`, `nemo` and `python` (for `-m` and scripts) in a new folder; returns it."""
        folder.mkdir(parents=True)
        for name in ("longpo", "nemo", "python"):
            (folder / name).write_text(_PROGRAM.format(python=sys.executable, address=self.address))
            (folder / name).chmod(0o755)
        return folder

    def wait_for_forks(self) -> None:
        """Wait until none is left but those that `ask` has given and nobody has closed."""
        self._asked = [asked for asked in self._asked if asked.fileno() != -1]
        wait_until(lambda: len(psutil.Process(self._process.pid).children()) <= len(self._asked))

    def close(self) -> None:
        """End it, after the forks that are ending: their processor time is its own then."""
        psutil.wait_procs(psutil.Process(self._process.pid).children(), timeout=5)
        self._process.kill()
        self._process.join()
        self._folder.cleanup()
