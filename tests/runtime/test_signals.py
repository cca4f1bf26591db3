import contextlib
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from unet.runtime.signals import Stopped, ignore_signals_in_worker, stop_errors, stop_request


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """SIGINT as in a terminal: it is ignored in a process that a script starts with `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_recorded_until_the_next_check(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with stop_request() as stop:
        stop.check()
        signal.raise_signal(signum)
        with pytest.raises(Stopped, match=f"stopped by {signum.name}") as caught:
            stop.check()
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before


def test_a_signal_after_the_last_check_is_not_forgotten() -> None:
    places = []

    def work() -> None:
        with stop_request():
            with stop_request() as stop:
                stop.check()
                signal.raise_signal(signal.SIGTERM)
            places.append("outer block")
        places.append("after it")

    with pytest.raises(Stopped):
        work()
    assert places == ["outer block"]


class Swallower:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def swallow() -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("work", [swallow, Swallower])
def test_an_error_that_other_code_swallows_is_raised_again(work: Callable[[], object]) -> None:
    before, places = signal.getsignal(signal.SIGALRM), []

    def work_on() -> None:
        with stop_errors():
            work()
            places.append("swallowed")
            time.sleep(5)
            places.append("lost")

    with pytest.raises(Stopped, match="SIGTERM"):
        work_on()
    time.sleep(0.1)  # no timer is left
    assert places == ["swallowed"]
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_signal_during_a_fork_is_not_lost() -> None:
    # The hooks of a fork cannot be unregistered, so they are those of another process.
    script = (
        "import os, signal, time\n"
        "from unet.runtime.signals import Stopped, stop_errors\n"
        "os.register_at_fork(before=lambda: signal.raise_signal(signal.SIGTERM))\n"
        "try:\n"
        "    with stop_errors():\n"
        "        if os.fork() == 0:\n"
        "            os._exit(0)\n"
        "        time.sleep(5)\n"
        "except Stopped:\n"
        "    os._exit(3)\n"
    )
    process = subprocess.run([sys.executable, "-c", script], timeout=60, stderr=subprocess.PIPE)
    assert (process.returncode, process.stderr) == (3, b"")


@pytest.mark.usefixtures("default_interrupt")
def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_request() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("torchrun", "seconds", "code"),
    [(True, 0.7, 0), (False, 0.0, 0), (False, 0.7, -signal.SIGTERM)],
)
def test_a_second_signal_ends_the_process_at_once(
    torchrun: bool, seconds: float, code: int
) -> None:
    # A copy by timeout(1) or torchrun does not count as a second signal.
    script = (
        "import contextlib, signal, time\n"
        "from unet.runtime.signals import Stopped, stop_request\n"
        "with contextlib.suppress(Stopped), stop_request():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        f"    time.sleep({seconds})\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
    )
    environment = {**os.environ, **({"TORCHELASTIC_RUN_ID": "a"} if torchrun else {})}
    process = subprocess.run([sys.executable, "-c", script], timeout=60, env=environment)
    assert process.returncode == code


def _work(ready: multiprocessing.synchronize.Event) -> None:
    ignore_signals_in_worker(0)
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who sent")
def test_only_its_parent_ends_a_worker() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_work, args=(ready,))
    process.start()
    assert ready.wait(20)
    assert process.pid is not None
    for name in ("INT", "TERM"):  # from a process that is not its parent
        subprocess.run(["bash", "-c", f"kill -{name} {process.pid}"], check=True)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.1)
    assert process.is_alive()
    process.terminate()
    process.join(20)
    assert process.exitcode == 0
