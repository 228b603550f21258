"""A fair lock: drawings share one device, and a short one waits for at most one step of a long one."""

import threading
from collections import deque


class Turns:
    """A lock that threads get in first-come, first-served order.

    A plain lock may go back to the thread that has just released it, so a drawing that takes it for every step would
    block all others until its end.
    """

    def __init__(self):
        self._guard, self._waiting, self._taken = threading.Lock(), deque(), False

    def __enter__(self) -> None:
        with self._guard:
            mine = threading.Lock() if self._taken else None
            if mine:
                mine.acquire()
                self._waiting.append(mine)
            self._taken = True
        if mine:
            mine.acquire()  # until the thread before this one releases the lock

    def __exit__(self, *_) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
