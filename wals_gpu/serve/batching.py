"""Requests that arrive while an answer is computed are answered together by the next computation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Batcher", "Full"]

#: Seconds that one answer may keep an event loop. Handing it to a thread and back takes a tenth of a millisecond.
AT_ONCE = 0.002
#: After so many requests in succession that were alone, each of so many looks whether others came with it: all of those
#: together keep the loop no longer than one may. A look takes as long as a tenth of a search of 20,000 items.
ALONE, LOOK = 32, 8

Q = TypeVar("Q")
A = TypeVar("A")


class Full(Exception):
    """As many requests wait as may wait."""


class _Asked(NamedTuple):
    """A request and whom to tell the answer."""

    request: object
    future: asyncio.Future[object]
    loop: asyncio.AbstractEventLoop
    is_small: bool


class Batcher(Generic[Q, A]):
    """A thread that answers requests, and the line of those that wait for it.

    Nobody waits for others to come: an idle thread takes what there is. While it works a line forms, and all of it is
    the next batch. Several event loops may ask. A small request that comes alone, when the last one of its kind took
    less time than a loop can do without, is answered on the spot.

    Parameters
    ----------
    answer : callable
        Answers (n,) of requests (n,), in the thread or, of one, in that of the event loop. An exception among them is
        raised for the one request; what it raises itself is raised for all.
    most_waiting : int
        Requests in the line.
    most_at_once : int, default 512
        Requests of a batch, so that the first of them does not wait for long.
    name : str, default "answers"
        Of the thread.

    Notes
    -----
    A thread of its own, not one of an executor: handing over a request and its answer takes a third of the time.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A | Exception]],
        most_waiting: int,
        most_at_once: int = 512,
        name: str = "answers",
    ) -> None:
        self._answer, self._most_waiting, self._most_at_once = answer, most_waiting, most_at_once
        self._line: SimpleQueue[_Asked | None] = SimpleQueue()
        self._name, self._lock = f"wals-gpu {name}", threading.Lock()
        self._thread: threading.Thread | None = None
        self._works = False  # the thread does
        self._n_small, self._seconds = 0, float("inf")  # so many came; what the last that was alone took
        self._n_alone = 0  # of these in succession, as far as was looked

    async def ask(self, request: Q, *, is_small: bool = False) -> A:
        """The answer to a request.

        Parameters
        ----------
        request : Q
        is_small : bool, default False
            All such requests take about the same time, and not much.

        Raises
        ------
        Full
            The line is as long as it may be.
        Exception
            What the request is answered with in place of an answer.
        """
        if self._line.qsize() >= self._most_waiting:
            raise Full
        if is_small and self._seconds < AT_ONCE:
            self._n_small += 1
            mine = self._n_small
            if self._n_alone < ALONE or mine % LOOK == 0 or self._seconds > AT_ONCE / LOOK:
                n_alone, self._n_alone = self._n_alone, 0  # who comes meanwhile looks too
                await asyncio.sleep(0)  # who came at the same moment gets this far too, and then they go together
                if mine == self._n_small:
                    self._n_alone = n_alone + 1
            if mine == self._n_small and not self._works and self._line.empty():
                [answer] = self._timed([request])
                if isinstance(answer, Exception):
                    raise answer
                return answer
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._line,), name=self._name, daemon=True)
                self._thread.start()
            self._line.put(_Asked(request, future, loop, is_small))  # type: ignore[arg-type]  # of any kind, for one line
        return await future

    def close(self) -> None:
        """End the thread when all are answered that wait, and wait for that. The next request begins another one."""
        with self._lock:
            thread, line = self._thread, self._line
            self._thread, self._line = None, SimpleQueue()  # who asks from now on: another thread, that does not end
            line.put(None)
        if thread is not None:
            thread.join()

    def _run(self, line: SimpleQueue[_Asked | None]) -> None:
        while (first := line.get()) is not None:
            self._works = True
            batch, is_last = [first], False
            with suppress(Empty):
                while len(batch) < self._most_at_once and not is_last:
                    one = line.get_nowait()
                    if one is None:
                        is_last = True
                    elif not one.future.done():  # else who asked has gone away
                        batch.append(one)
            self._answer_all(batch)
            del first, batch  # not until the next request comes
            if is_last:
                return

    def _answer_all(self, batch: Sequence[_Asked]) -> None:
        answers: Sequence[A | Exception]
        requests: list[Q] = [one.request for one in batch]  # type: ignore[misc]
        try:
            answers = self._timed(requests) if batch[0].is_small and len(batch) == 1 else self._answer(requests)
        except Exception as error:
            answers = [error] * len(batch)
        self._works = False  # before they are told: who asks again at once need not wait for this thread
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[object], A | Exception]]] = {}
        for one, answer in zip(batch, answers, strict=True):
            by_loop.setdefault(one.loop, []).append((one.future, answer))
        for loop, told in by_loop.items():
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody is there to be told
                loop.call_soon_threadsafe(_tell, told)

    def _timed(self, requests: Sequence[Q]) -> Sequence[A | Exception]:
        """The answer to a small request that is alone."""
        start = time.perf_counter()
        answers = self._answer(requests)
        self._seconds = time.perf_counter() - start
        return answers


def _tell(told: Sequence[tuple[asyncio.Future[object], object]]) -> None:
    for future, answer in told:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
