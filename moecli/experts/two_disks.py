"""Reads that wait, dealt to two disks with the same files, so that both are done with all of them at about one time."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Task = TypeVar("Task")
_KEPT = 0.9  # of what was known of a disk's speed, when a task has shown it anew
_FADING = 0.99  # of the time that a disk takes which is left idle: after a while it is tried again


class TwoDisks(Generic[Task]):
    """The queue of the threads of both disks, 0 and 1. They are asked for about as much each as they are fast."""

    def __init__(self) -> None:
        self._tasks: deque[Task | None] = deque()
        self._changed = threading.Condition()
        self._seconds = [0.0, 0.0]  # from one task of a busy disk to its next; 0: not known yet
        self._active = [0, 0]  # tasks that each is at
        self._alone: int | None = None  # the disk that is left where the other is not used any more

    def put(self, task: Task | None) -> None:
        """None ends the thread that gets it."""
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()

    def get(self, disk: int) -> Task | None:
        """The next task for a thread of this disk, once it is its turn; None once this thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over(disk) or (bool(self._tasks) and self._is_turn(disk)))
            if self._is_over(disk):
                return None
            task = self._tasks.popleft()
            self._active[disk] += task is not None
            return task

    def done(self, disk: int, seconds: float) -> None:
        """A task of this disk took so long."""
        with self._changed:
            taken = seconds / self._active[disk]
            known = self._seconds[disk]
            self._seconds[disk] = known * _KEPT + taken * (1 - _KEPT) if known else taken
            self._active[disk] -= 1
            if not self._active[1 - disk]:
                self._seconds[1 - disk] *= _FADING
            self._changed.notify_all()

    def leave(self, disk: int, task: Task) -> bool:
        """This disk is used no more, and the other does its task. Whether that is news."""
        with self._changed:
            news, self._alone = self._alone is None, 1 - disk
            self._tasks.appendleft(task)
            self._active[disk] -= 1
            self._changed.notify_all()
            return news

    def _is_over(self, disk: int) -> bool:
        return self._alone == 1 - disk

    def _is_turn(self, disk: int) -> bool:
        """Whether this disk would be done with one more task before the other were with all that wait.

        Of two disks that are both alive it is always the turn of one at least.
        """
        other = 1 - disk
        ours = (self._active[disk] + 1) * self._seconds[disk]
        theirs = (self._active[other] + len(self._tasks)) * self._seconds[other]
        return self._alone == disk or self._tasks[0] is None or ours <= theirs
