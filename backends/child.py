"""A builder in a process of its own: its crash, its hang and its memory cannot take ours down.

The parent calls ``run_child("backends.tensorrt.child", request)``; that module ends with ``serve(build)``. Requests
and answers are JSON; graphs and weights travel as files. What the builder prints goes to a log, of which the last
lines are told when it dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ir import errors
from ir.errors import BuildError, LimitError, PenstockError

_ROOT = Path(__file__).parents[1]
_TAIL = 3
_GLANCE = 0.05
Progress = Callable[[str, float], None]
Answer = Mapping[str, Any]


def run_child(
    module: str,
    request: Mapping[str, Any],
    *,
    timeout: float | None = None,
    memory: int | None = None,
    progress: Progress = lambda phase, fraction: None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Let a child module answer one request.

    Args:
        module: run as ``python -m``; it calls ``serve``.
        request: JSON values.
        timeout: seconds; ``None`` waits for ever.
        memory: bytes of resident memory after which the child is stopped.
        progress: hears what the child tells, on this thread.
        environment: variables to add.

    Raises:
        PenstockError: of whatever kind the child raised.
        BuildError: it crashed, or ended without an answer.
        LimitError: out of time or memory.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True, env=variables, start_new_session=True,
        )  # fmt: skip
        stopped: list[PenstockError] = []
        done = threading.Event()
        guard = threading.Thread(
            target=_guard, args=(child, module.split(".")[1], timeout, memory, stopped, done), daemon=True
        )
        guard.start()
        try:
            answer = _talk(child, request, progress)
            if answer is None:
                child.wait()  # its pipe is closed: it is about to end, and its own code says how
        finally:
            done.set()
            guard.join()
            _kill(child)
            child.wait()
        if stopped:
            raise stopped[0]
        if answer is None:
            raise _died(module.split(".")[1], child.returncode, log)
        return answer


def serve(build: Callable[[dict[str, Any], Progress], Answer]) -> None:
    """The child's side: read a request, build, answer. Never returns."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is log

    def tell(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        request = json.loads(sys.stdin.read())
        tell(result=dict(build(request, lambda phase, fraction: tell(progress=[phase, fraction]))))
    except PenstockError as error:
        tell(error=[type(error).__name__, error.what, error.where, error.hint])
    except MemoryError:
        tell(error=["LimitError", "the builder ran out of memory", "", ""])
    answers.close()
    sys.stderr.flush()
    os._exit(0)  # no destructors of a compiler that has done its work


def _talk(child: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
    assert child.stdin is not None and child.stdout is not None
    try:
        with child.stdin as pipe:
            pipe.write(json.dumps(request))
    except BrokenPipeError:
        return None  # it died before it read; its log says why
    with child.stdout as lines:
        for line in lines:
            message = json.loads(line)
            if "progress" in message:
                progress(*message["progress"])
            elif "error" in message:
                kind, what, where, hint = message["error"]
                made = getattr(errors, kind, BuildError)
                raise made(what, where=where, hint=hint)
            else:
                result: dict[str, Any] = message["result"]
                return result
    return None


def _guard(
    child: subprocess.Popen[str],
    name: str,
    timeout: float | None,
    memory: int | None,
    stopped: list[PenstockError],
    done: threading.Event,
) -> None:
    end = None if timeout is None else time.monotonic() + timeout
    while not done.wait(_GLANCE):
        if end is not None and time.monotonic() > end:
            stopped.append(
                LimitError(
                    f"the {name} builder did not finish within {timeout:g} s", hint="--build-timeout allows more"
                )
            )
        elif memory is not None and (held := _resident(child.pid)) > memory:
            stopped.append(
                LimitError(f"the {name} builder held {held / 1e9:.1f} GB, more than the {memory / 1e9:.1f} GB allowed")
            )
        if stopped:
            _kill(child)
            return


def _resident(pid: int) -> int:
    """Bytes of memory in use; 0 where that cannot be known."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _kill(child: subprocess.Popen[str]) -> None:
    """The child and whatever it started (a C++ compiler)."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()


def _died(name: str, code: int, log: IO[str]) -> PenstockError:
    log.seek(0)
    said = [line.strip() for line in log.read()[-8000:].splitlines() if line.strip()]
    told = "; ".join(said[-_TAIL:])[:600]
    if code == -signal.SIGKILL:
        return LimitError(f"the {name} builder was killed by the system, most likely for want of memory")
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code} and no answer"
    return BuildError(f"the {name} builder {how}{': ' + told if told else ''}")
