"""Stop a run on SIGINT or SIGTERM: after the current step, or at once on the second signal."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unet.runtime import distributed

# A second signal within this time is a copy of the first: timeout(1) signals the process and its
# group, and torchrun passes on signals that its processes already got from the terminal.
_COPY_SECONDS = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.5


class Stopped(KeyboardInterrupt):
    """A signal (`signum`) ended the work, after its state could be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopRequest:
    """Records SIGINT and SIGTERM within `stop_request`."""

    def __init__(self) -> None:
        self._signum = 0
        self._time = 0.0

    def receive(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Record a signal; a second signal ends the process at once."""
        if self._signum and time.monotonic() - self._time >= _COPY_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._signum = self._signum or signum
        self._time = self._time or time.monotonic()

    def check(self) -> None:
        """Raise `Stopped` if any process has received a signal; all processes call it together."""
        if distributed.any_rank(self._signum != 0):
            raise Stopped(self._signum or signal.SIGTERM)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record SIGINT and SIGTERM in the block instead of ending it at once.

    A signal that the process ignores stays ignored, as SIGINT after `command &` in a script.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread can handle signals
        return
    before = {
        signum: signal.signal(signum, request.receive)
        for signum in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
