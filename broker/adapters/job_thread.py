"""One thread beside the loop, for work that would make the loop wait: closing, populating, sealing.

Jobs run one after the other. What a job returns goes to its `done` on the loop, so an adapter's books are changed there
only. A job that raises is a bug: it is raised again on the loop, where the daemon's outermost frame gets it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")


def _raise(failure: BaseException) -> None:
    raise failure


class JobThread:
    """A thread that belongs to the loop it was made on."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._closed = False

    def run(self, job: Callable[[], Result], done: Callable[[Result], None]) -> None:
        """Queue a job; `done` gets its result on the loop, unless the thread was closed before."""
        self._thread.submit(job).add_done_callback(partial(self._finished, done))

    def close(self) -> None:
        """Finish what is queued, since some of it closes fds, tell nobody, and end the thread."""
        self._closed = True
        self._thread.shutdown(wait=True)

    def _finished(self, done: Callable[[Result], None], job: Future[Result]) -> None:
        if self._closed:
            return
        failure = job.exception()
        if failure is not None:
            self._loop.call_soon_threadsafe(_raise, failure)
        else:
            self._loop.call_soon_threadsafe(self._tell, done, job.result())

    def _tell(self, done: Callable[[Result], None], result: Result) -> None:
        if not self._closed:
            done(result)
