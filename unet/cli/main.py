"""Run a command and turn its errors into messages and exit codes. Torch is imported only on use."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from unet.cli.arguments import parse
from unet.cli.commands import run_train
from unet.cli.terminal import Terminal, print_error
from unet.runtime.errors import UnpredictedError, is_out_of_memory
from unet.runtime.optional import install_command
from unet.runtime.signals import Stopped, StopRequest, stop_errors

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: `check` found errors, or some images were not predicted. 2: wrong input. 130, 143:
    interrupted by SIGINT, SIGTERM. 141: nobody reads the output, as in `unet evaluate ... | head`.
    """
    stop = StopRequest()
    try:
        with stop_errors() as stop:
            code = _run(sys.argv[1:] if argv is None else argv)
        if stop.signum:  # it came with the end of the command, or with another error
            raise Stopped(stop.signum)
        return code
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":
            print_error(str(error) or "interrupted")
        return 128 + (stop.signum or signal.SIGINT)


def run() -> None:
    """Run the command of this process and exit."""
    code = main()
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        # Python would take a second of CPU time to delete what torch has made.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(words: Sequence[str]) -> int:
    """Run one command, print its errors, and return the exit code."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # only the first process prints
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    threading.excepthook = _report_thread_error
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file shows each line at once; names that are not UTF-8 are shown escaped.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # our own messages report damaged files
    arguments = argparse.Namespace(run=None, traceback="--traceback" in words)
    try:
        with contextlib.redirect_stdout(cast(TextIO, Terminal(sys.stdout))):
            arguments, settings = parse(words)
            return int(arguments.run(arguments, settings) or 0)
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # which Python flushes at its end
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)  # Windows has none
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        message = _message(error, arguments.run is run_train)
        if not _is_reported(message):
            who = f"process {rank}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
            print_error(f"{who}error: {message}")
        return 1 if isinstance(error, UnpredictedError) else 2


def _message(error: Exception, is_training: bool) -> str:
    match error:
        case ModuleNotFoundError(name=str(name)):
            return (
                f"the package {name} is not installed; install unet with its packages: "
                f"{install_command()}"
            )
        case OSError(errno=int(number)):  # raised by the system; our own have no number
            advice = "check the path, its permissions and the free space"
            if number in _DISK_FULL and is_training:
                advice = "free some space; --resume continues from the last checkpoint, if any"
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror}; {advice}"
        case _ if is_out_of_memory(error):
            return str(error) or "out of memory"
        case ValueError() | FloatingPointError() | OSError():
            return str(error).strip()
        case _:
            return (
                f"{type(error).__name__}: {str(error).strip()}; this is a bug in unet: please "
                "report it with the output of the same command and --traceback"
            )


def _is_reported(message: str) -> bool:
    """Whether the first of several processes reports the same error."""
    if "unet.runtime.distributed" not in sys.modules:  # it imports torch
        return os.environ.get("RANK", "0") != "0"
    from unet.runtime import distributed

    return distributed.is_reported(message)


def _report_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Drop the errors of a full disk in TensorBoard's thread: the main thread reports them."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
