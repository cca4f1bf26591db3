"""Signals that ask a process to stop: first politely, then at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unet.runtime import distributed

# A signal so soon after the first is the same one: timeout(1) sends it to the process and to its
# group, torchrun passes on what its processes have got from the terminal already.
_SAME_SECONDS = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.5


class Stopped(KeyboardInterrupt):
    """Work that a signal ended where it could be ended well.

    Args:
        signum: SIGINT or SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopRequest:
    """What SIGINT and SIGTERM leave behind while `stop_request` is in force."""

    def __init__(self) -> None:
        self._signum = 0
        self._time = 0.0

    def receive(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Note a signal; the second one ends the process where it stands."""
        if self._signum and time.monotonic() - self._time >= _SAME_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._signum = self._signum or signum
        self._time = self._time or time.monotonic()

    def check(self) -> None:
        """End the work if a signal has come, to whichever process; all processes call it together.

        Raises:
            Stopped: then.
        """
        if distributed.any_rank(self._signum != 0):
            raise Stopped(self._signum or signal.SIGTERM)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of obeying them at once, as long as the block lasts."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals are the main thread's
        return
    before = {
        signum: signal.signal(signum, request.receive) for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def ignore_signals_in_worker(worker: int) -> None:  # noqa: ARG001
    """Let a process that loads samples live on while its parent finishes a step.

    It ends when the parent ends it, or is gone, but not by a signal that is sent to all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(
        signal, "sigwaitinfo"
    ):  # not on macOS, where such a worker ends, and with it the run
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
