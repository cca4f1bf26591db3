"""The `unet` command. Torch is imported only once there is work for it."""

import errno
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from unet.cli.arguments import parser
from unet.cli.commands import run_predict, run_train

# What a setting looks like: train.epochs=5, but neither --out=masks nor runs/lr=0.1/best.pt.
_SETTING = re.compile(r"\w+(\.[^=/\\]+)*=")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What gloo and nccl say when the process at the other end is gone.
_LOST_PROCESS = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|remote process exited|NCCL error", re.IGNORECASE
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 faults found by check or images not predicted, 2 wrong input, 130 and 143 interrupted.
    """
    rank = os.environ.get("RANK", "0")
    who = f"process {rank}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    if rank != "0":  # the first process speaks for all
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _hear_thread
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line as it comes
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file, we say
    # Settings may stand anywhere among the other arguments.
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if _SETTING.match(word) and not Path(word).exists()]
    command_line = parser()
    arguments, unknown = command_line.parse_known_args(
        [word for word in words if word not in overrides]
    )
    if arguments.run is run_predict:  # whose images may stand behind options
        arguments.paths += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        command_line.error(
            f"got {' '.join(unknown)}, which means nothing here; settings are written KEY=VALUE, "
            "such as train.epochs=5"
        )
    try:
        return int(arguments.run(arguments, overrides) or 0)
    except BrokenPipeError:  # the reader left, as in `unet evaluate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        if arguments.traceback:
            traceback.print_exc()
        text = str(error).strip()
        if "DataLoader worker process" in text:
            text = _last_line(error)
        if isinstance(error, OSError) and error.strerror:  # the system's, not ours
            advice = "check the path, its rights and the space"
            if error.errno in _DISK_FULL and arguments.run is run_train:
                advice = "make room; --resume goes on from the last checkpoint, if there is one"
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror}; {advice}"
        # What all processes meet, the first one says.
        if rank == "0" or (_has_joined() and not isinstance(error, FloatingPointError)):
            print(f"{who}error: {text}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except MemoryError as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"{who}error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if arguments.traceback:
            raise
        if who and _LOST_PROCESS.search(str(error)):
            text = "another process is gone, and with it this one; see what it said"
        elif killed := re.search(r"DataLoader worker \(pid.*", str(error)):
            text = f"{killed.group()}; lower train.num_workers or data.cache_gib if memory ran out"
        elif "DataLoader worker process" in str(error):
            text = _last_line(error)
        else:
            from unet.runtime.device import OUT_OF_MEMORY

            if not OUT_OF_MEMORY.search(str(error)):
                raise
            advice = "take a smaller model.widths"
            if arguments.run is not run_train:
                advice = "take smaller images, or a lower tiling.size"
            text = f"{str(error).strip().splitlines()[-1][:200]}; {advice}"
        print(f"{who}error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if rank == "0":
            print(str(error) or "interrupted", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)


def _last_line(error: Exception) -> str:
    """What a process that loads samples met; the lines before are the way there."""
    return str(error).strip().splitlines()[-1].partition(": ")[2]


def _has_joined() -> bool:
    """Whether this process works with others; of torch only if it was needed."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def _hear_thread(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of a full disk in TensorBoard's thread, which the main thread hears of, too."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End as after Ctrl-C, with what is half-written removed."""
    raise SystemExit(128 + signum)
