"""Stop on SIGINT or SIGTERM: at once, or after the current step; at once on the second signal."""

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# A second signal within this time is a copy of the first: timeout(1) signals the process and its
# group, and torchrun passes on signals that its processes already got from the terminal.
_COPY_SECONDS = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.5
_RETRY_SECONDS = 0.05  # until `Stopped` is raised again after other code has swallowed it


class Stopped(KeyboardInterrupt):
    """A signal (`signum`) ended the work, after its state could be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopRequest:
    """The first SIGINT or SIGTERM within `stop_errors` and `stop_request`."""

    def __init__(self, retries: bool = False) -> None:
        self.retries = retries
        self.signum = 0
        self.blocks = 0  # of `stop_request`: inside them, signals are only recorded
        self._time = 0.0
        self._raised: weakref.ref[Stopped] | None = None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Record a signal; a second signal ends the process at once."""
        if self.signum and time.monotonic() - self._time >= _COPY_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = self.signum or signum
        self._time = self._time or time.monotonic()
        self.raise_if_due(signum, frame)

    def raise_if_due(self, *_: Any) -> None:
        """Raise `Stopped` after a signal, outside all blocks, and only one at a time."""
        if self.signum and not self.blocks and (self._raised is None or self._raised() is None):
            raise self._new_error()

    def check(self) -> None:
        """Raise `Stopped` if any process has received a signal; all processes call it together."""
        from unet.runtime import distributed  # imports torch; main handles signals before that

        if distributed.any_rank(self.signum != 0):
            self.signum = self.signum or signal.SIGTERM
            raise self._new_error()

    def _new_error(self) -> Stopped:
        # Python drops an error that a signal handler raises within __del__ and the hooks of a fork,
        # and some libraries catch all errors. Then the error is deleted, and SIGALRM raises it
        # again. Callers must not keep it in a variable: their frame would keep it alive.
        def retry(_: object) -> None:
            if self.retries:
                signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)

        error = Stopped(self.signum)
        self._raised = weakref.ref(error, retry)
        return error


_current: StopRequest | None = None
"""The request of the main thread, which nested blocks share."""


@contextmanager
def stop_errors(retries: bool = hasattr(signal, "setitimer")) -> Iterator[StopRequest]:
    """Raise `Stopped` in the block on SIGINT or SIGTERM.

    A signal that the process ignores stays ignored, as SIGINT after `command &` in a script.

    Args:
        retries: whether to raise it again if other code swallows it; this uses SIGALRM.
    """
    global _current  # as the signal handlers, it belongs to the process
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()  # only the main thread can handle signals
        return
    if _current is not None:
        yield _current
        return
    request = _current = StopRequest(retries)
    handlers: dict[int, Callable[..., None]] = {
        signal.SIGINT: request.receive,
        signal.SIGTERM: request.receive,
    }
    show = sys.unraisablehook
    if retries:
        handlers[signal.SIGALRM] = request.raise_if_due
        # Other hooks would show the error and keep it.
        sys.unraisablehook = lambda info: None if info.exc_type is Stopped else show(info)
    before = {
        signum: signal.signal(signum, handler)
        for signum, handler in handlers.items()
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        request.blocks += 1
        if retries:
            request.retries = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = show
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _current = None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record SIGINT and SIGTERM in the block; at its end, raise `Stopped` if there was one.

    The block may end earlier with `StopRequest.check`.
    """
    with stop_errors(retries=False) as request:
        request.blocks += 1
        try:
            yield request
        finally:
            request.blocks -= 1
        request.raise_if_due()


def ignore_signals_in_worker(worker: int) -> None:  # noqa: ARG001
    """Let a worker of the data loader outlive signals to the process group.

    Its parent finishes a step first, then ends it. The worker also ends with its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: there SIGTERM ends worker and run
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
