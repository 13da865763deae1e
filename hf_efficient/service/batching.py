"""Requests of many users joined into batches."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from hf_efficient.errors import BusyError

Answer = Callable[[Sequence[Any]], list[dict[str, Any]]]


class Batcher:
    """Answers what waits, as many requests at once as there are, on a thread of its own.

    No request waits for others to come: a batch is what gathered while the one before it was computed, so that one user
    alone has the latency of a batch of one, and many have the throughput of large ones.

    Args:
        answer: from requests to their answers, in their order.
        max_batch: requests that are answered at once.
        capacity: requests that may wait.
        on_batch: called with the size of each batch before it is answered.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        max_batch: int = 32,
        capacity: int = 256,
        on_batch: Callable[[int], None] = lambda size: None,
    ):
        self.max_batch, self.capacity = max_batch, capacity
        self._answer, self._on_batch = answer, on_batch
        self._waiting: deque[tuple[Any, Future[dict[str, Any]]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def submit(self, request: Any) -> "Future[dict[str, Any]]":
        """The answer to come; its `result()` raises what `answer` raised.

        Raises:
            BusyError: `capacity` requests wait already, or the batcher is closed.
        """
        future: Future[dict[str, Any]] = Future()
        with self._changed:
            if self._is_closed:
                raise BusyError("the service is stopping; ask again when it has been started anew")
            if len(self._waiting) >= self.capacity:
                raise BusyError(f"{self.capacity} requests wait already; ask again after a moment")
            self._waiting.append((request, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what waits, and take nothing more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._on_batch(len(batch))
            self._settle(batch)

    def _next(self) -> list[tuple[Any, "Future[dict[str, Any]]"]]:
        """What waits, up to `max_batch`; empty once closed and done."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            taken = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
        wanted = [(request, future) for request, future in taken if future.set_running_or_notify_cancel()]
        return wanted if wanted or not taken else self._next()

    def _settle(self, batch: list[tuple[Any, "Future[dict[str, Any]]"]]) -> None:
        try:
            answers = self._answer([request for request, _ in batch])
        except BaseException as error:  # whatever it is, who waits must hear of it
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # one request must not spoil the others
                for each in batch:
                    self._settle([each])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
