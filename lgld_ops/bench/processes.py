"""Worker processes as the harness sees them: started once, stopped (SIGSTOP) except while they answer.

A stopped process spins no thread pool and takes no share of the caches, so that it cannot disturb the one in
turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_TAIL_LINES = 20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerError(RuntimeError):
    """The worker died, hung, or raised; ``stderr_tail`` holds the end of what it printed."""

    def __init__(self, message: str, stderr_tail: str) -> None:
        super().__init__(message)
        self.stderr_tail = stderr_tail


def _environment(threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    inherited = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *inherited]),
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        # Compiling in the process itself: a pool of compile processes would outlive the turn.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        **extra,
    }


class WorkerProcess:
    """One worker; leads a session of its own, so that signals reach whatever it starts, and Ctrl-C does not
    reach it.

    Args:
        name: names its file of standard error and appears in messages.
        threads: of torch and OpenMP.
        environment: variables of its own, set before Python starts.
        plugins: absolute paths of Python files that register further opponents.
        scratch: folder that it runs in and that holds its standard error.
    """

    def __init__(self, name: str, threads: int, environment: Mapping[str, str], plugins: Sequence[str], scratch: Path) -> None:
        self.name = name
        self._ready = False
        safe = "".join(character if character.isalnum() else "-" for character in name)
        self._stderr_path = scratch / f"{safe}-{time.monotonic_ns()}.stderr"
        self.connection, theirs = Pipe()
        command = [sys.executable, "-m", "lgld_ops.bench.worker", "--fd", str(theirs.fileno())]
        command += ["--threads", str(threads)]
        for plugin in plugins:
            command += ["--plugin", plugin]
        with theirs, open(self._stderr_path, "wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                env=_environment(threads, environment),
                cwd=scratch,  # away from any checkout, whose unbuilt package would come first on the path
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def stderr_tail(self) -> str:
        text = self._stderr_path.read_text(errors="replace") if self._stderr_path.exists() else ""
        return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])

    def error(self, what: str) -> WorkerError:
        return WorkerError(f"worker {self.name!r} {what}", self.stderr_tail())

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def pause(self) -> None:
        """Stops the worker and returns when every thread of it has stopped (or it has ended)."""
        if self._process.returncode is None:
            self._signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def send(self, message: Mapping[str, Any]) -> None:
        """Resumes the worker and hands it a message; ``receive`` the answer, then ``pause``."""
        self.resume()
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except OSError:
            raise self._death() from None

    def receive(self) -> dict[str, Any] | None:
        """The answer, once ``connection`` is readable; None where that was only the sign that the worker is
        up."""
        try:
            answer: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None
        if not self._ready:
            self._ready = True
            return None
        if "error" in answer:
            raise self.error(f"raised {answer['error']}")
        return answer

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """One turn: resume, ask, wait for the answer, stop."""
        try:
            self.send(message)
            deadline = time.monotonic() + timeout
            while True:
                if not self.connection.poll(max(0.0, deadline - time.monotonic())):
                    raise self.hang(timeout)
                answer = self.receive()
                if answer is not None:
                    return answer
        finally:
            self.pause()

    def hang(self, timeout: float) -> WorkerError:
        """Ends a worker that did not answer in time, and says so."""
        error = self.error(f"did not answer within {timeout:g} s")
        self.close()
        return error

    def _death(self) -> WorkerError:
        # The connection closes a moment before the exit status is there.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with status {code}" if code is not None else "closed its connection"
        error = self.error(how)
        self.close()
        return error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kills the worker with whatever it started, stopped or not, and waits for its end."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self.connection.close()
