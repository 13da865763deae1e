"""Alarms on their way: to the log, and to webhooks, again and again until each was received."""

import dataclasses
import logging
import threading
import time
from typing import Any

from hf_efficient.errors import MissingDependencyError
from hf_efficient.tasks.apps.monitor_store import Alarm, Store

logger = logging.getLogger(__name__)

LONGEST_WAIT = 300
"""Seconds from one try to the next, at most."""
_TIMEOUT = 10


def wait(tries: int) -> float:
    """Seconds until an alarm that was sent ``tries`` times before is sent once more, were it not received."""
    return float(min(_TIMEOUT + 2**tries, LONGEST_WAIT))


class Sender:
    """Sends the alarms of ``store`` to a webhook, on a thread of its own.

    Alarms wait in the database until the receiver says 2xx, so that neither its failures nor ours lose one. One that it
    received just before we were killed comes twice: its ``id``, also in the header Idempotency-Key, tells.

    Args:
        client: an `httpx.Client`; None makes one.
        poll_s: seconds between looks at the database.
    """

    def __init__(self, store: Store, url: str, client: Any = None, poll_s: float = 1.0):
        try:
            import httpx
        except ImportError as error:
            raise MissingDependencyError("sending alarms to a webhook", "httpx", "apps") from error
        self.store, self.url, self.poll_s = store, url, poll_s
        self._errors = (httpx.HTTPError, httpx.InvalidURL)
        self._client = client or httpx.Client(timeout=_TIMEOUT)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alarms", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After the alarm that is under way; what waits is sent after the next start."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self.send_due()
            except Exception:  # of the database: the next time may do better, and alarms wait there
                logger.exception("alarms could not be sent; tried again")
            self._stopped.wait(self.poll_s)

    def send_due(self, now: float | None = None) -> int:
        """Send what is due; how many were received."""
        received = 0
        for alarm in self.store.claim(time.time() if now is None else now, wait):
            if self._sent(alarm):
                self.store.mark_sent(alarm)
                received += 1
        return received

    def _sent(self, alarm: Alarm) -> bool:
        body = {**dataclasses.asdict(alarm), "text": str(alarm)}
        try:
            answer = self._client.post(self.url, json=body, headers={"Idempotency-Key": f"alarm-{alarm.id}"})
        except self._errors as error:
            logger.warning("alarm %d was not received (%s: %s); sent again", alarm.id, type(error).__name__, error)
            return False
        if not answer.is_success:
            logger.warning("alarm %d was not received (HTTP %d); sent again", alarm.id, answer.status_code)
        return answer.is_success
