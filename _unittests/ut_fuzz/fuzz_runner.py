"""Runs cases in child processes, since what is fed to onnxruntime may end or stop a process.

A child does one case after the other and says so on a pipe. If it ends, is silent for too long or without
memory, the case that it was at is done once more, alone, and another child goes on behind it.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

__all__ = ["Result", "run_cases"]

Case = Callable[[int], str]
# What waits uses no time of the processor, and is given so many times as long: others may need it, too.
PATIENCE = 6


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes
    ----------
    number : int
        Which case.
    outcome : str
        What the case returned; 'leak' after an exception; 'memory' after a MemoryError; 'timeout'; 'killed'.
    detail : str
        Traceback, name of the signal, what the process said last.
    seconds : float
        How long it took.
    """

    number: int
    outcome: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether it took the process with it."""
        return self.outcome in ("timeout", "killed")

    @property
    def bad(self) -> bool:
        """Whether something happened that must not."""
        return self.again or self.outcome == "leak"

    @property
    def again(self) -> bool:
        """Whether the cases before it in the same process may be what did it."""
        return self.ended or self.outcome == "memory"


def run_cases(
    case: Case,
    numbers: Sequence[int],
    seconds: float = 20.0,
    memory: int = 6 * 2**30,
    batch: int = 20,
) -> Iterator[Result]:
    """Run cases in children.

    Parameters
    ----------
    case : callable
        Takes a number and returns what became of it, in a word.
    numbers : sequence of int
        Which ones.
    seconds : float, default=20
        How long one may take, of the processor; by the clock it is `PATIENCE` times as long.
    memory : int, default=6 GiB
        Address space of a child, beyond what the process has by then.
    batch : int, default=20
        How many a child does.

    Yields
    ------
    Result
        In order.
    """
    left = list(numbers)
    while left:
        done = 0
        for result in _child(case, left[:batch], seconds, memory):
            done += 1
            yield _alone(case, result, seconds, memory) if result.again and batch > 1 else result
        del left[:done]


def _alone(case: Case, result: Result, seconds: float, memory: int) -> Result:
    """What becomes of the case in a child of its own. A signal that does not come again stays one."""
    again = next(_child(case, [result.number], seconds, memory))
    if result.outcome != "killed" or again.again:
        return again
    return dataclasses.replace(result, detail=f"only behind others, not alone\n{result.detail}")


def _child(case: Case, numbers: Sequence[int], seconds: float, memory: int) -> Iterator[Result]:
    """Results of one child, until it is done or comes to an end, or to one of its memory."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if not pid:
            os.close(reading)
            _work(case, numbers, writing, said.fileno(), memory, seconds)
        os.close(writing)
        done = 0
        try:
            with os.fdopen(reading, "rb", buffering=0) as pipe:
                for result in _results(pipe, seconds):
                    done += 1
                    yield result
                    if result.outcome == "memory":
                        return
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        if done < len(numbers):
            said.seek(0)
            text = said.read().decode(errors="replace").partition("Extension modules")[0][-4000:]
            late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
            yield Result(numbers[done], "timeout" if late else "killed", f"{ended}\n{text}", seconds)


def _results(pipe: object, seconds: float) -> Iterator[Result]:
    """What the child writes, a line a case, until it ends or says nothing for too long."""
    selector = selectors.DefaultSelector()
    selector.register(pipe, selectors.EVENT_READ)  # type: ignore[arg-type]
    rest = b""
    while selector.select(PATIENCE * seconds + 5.0):
        found = pipe.read(1 << 16)  # type: ignore[attr-defined]
        if not found:
            return
        *lines, rest = (rest + found).split(b"\n")
        for line in lines:
            yield Result(*json.loads(line))


def _work(case: Case, numbers: Sequence[int], writing: int, said: int, memory: int, seconds: float) -> None:
    """The child: never returns."""
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        faulthandler.enable(file=2)
        # A process in which much was tested before has much: without room not even a thread can begin.
        memory += _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
            resource.setrlimit(resource.RLIMIT_CPU, (used + int(seconds) + 1, resource.RLIM_INFINITY))
            start = time.perf_counter()
            outcome, detail = _outcome(case, number)
            line = [number, outcome, detail[-6000:], time.perf_counter() - start]
            os.write(writing, json.dumps(line).encode() + b"\n")
            os.ftruncate(said, 0)
            os.lseek(said, 0, os.SEEK_SET)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(99)


def _address_space() -> int:
    """Of this process, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _outcome(case: Case, number: int) -> tuple[str, str]:
    try:
        return case(number), ""
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException as error:
        if isinstance(error.__cause__, MemoryError):
            return "memory", traceback.format_exc()
        return "leak", traceback.format_exc()
