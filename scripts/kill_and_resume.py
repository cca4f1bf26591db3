"""Kill a training run at random moments, resume it, and compare it with an uninterrupted run.

A small run on the quickstart data saves after every step. Each round starts a new run, kills it
with SIGKILL, finishes it with `--resume`, and compares last.pt, best.pt and metrics.csv bit for bit
with an uninterrupted run. Half of the kills happen at any time of the run, half while a checkpoint
is written or replaces the previous one. Half of the kills also hit the workers that load samples,
and half of the runs have such workers.

With --signals, SIGTERM or SIGINT ends a series of runs (two seeds, or two folds) at a random
moment instead, in one series for each core at the same time. The command must end within 5 seconds
with exit code 143 or 130, and the series must resume to the same weights. On a busy machine, the
time that its main thread waits for a CPU does not count. Half of the signals go to the process
alone, half to its group.

Everything runs on the CPU with one thread, because sums depend on the number of threads. --seed
determines the moments, but the progress of the run at a moment depends on the machine. Linux only.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unet.data.synthetic import draw_quickstart

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    "model.widths=[8,16]",
    "augment.crop=[64,64]",
    "train.epochs=3",
    "train.ema_decay=0.9",
    "train.save_every_steps=1",
    "train.previews=1",
    "train.device=cpu",
    "train.precision=float32",
]
QUICK = ("train.epochs=2", "train.steps_per_epoch=3", "train.previews=0", "train.loggers=[]")
WORKERS = (0, 2)
SERIES = (
    ("train.seeds=2", "train.epochs=1"),
    ("data.validation={folds: 2}", "--folds=all", "train.epochs=1"),
)
LONGEST_END = 5.0  # seconds from a signal to the end of the command
LONGEST_WAIT = 60.0  # seconds until a command counts as hanging, however busy the machine is
# These may differ between two equal runs.
IGNORED = ("seconds", "config.name", "config.train.num_workers")


@dataclass(frozen=True)
class Uninterrupted:
    """A run without a kill, which the other runs are compared with."""

    run: Path
    seconds: float
    steps: int
    size: int  # of last.pt in bytes


@dataclass(frozen=True)
class Moment:
    """The moment of a kill.

    Args:
        seconds: time after the start; None for a moment during a save.
        save: first checkpoint at which to look for the moment, counted from 1.
        stage: stage of the save: the file is being written; next.pt is complete; or last.pt has
            been renamed, and next.pt not yet.
        fraction: fraction of the file that is written.
    """

    seconds: float | None = None
    save: int = 1
    stage: Literal["writing", "whole", "exchange"] = "writing"
    fraction: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random, uninterrupted: Uninterrupted, saving: bool) -> "Moment":
        """Draw a random moment."""
        if not saving:
            return cls(seconds=rng.uniform(0, uninterrupted.seconds))
        return cls(
            save=rng.randint(1, uninterrupted.steps),
            stage=rng.choice(("writing", "writing", "whole", "exchange")),
            fraction=rng.random(),
        )


@contextmanager
def started(folder: Path, name: str, workers: int, *more: str) -> Iterator[subprocess.Popen]:
    """Start `unet train` with a log file; at the end, kill all its processes."""
    command = [sys.executable, "-m", "unet", "train", str(ROOT / "configs" / "quickstart.yaml")]
    command += [f"name={name}", *SETTINGS, f"train.num_workers={workers}", *more]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
    with log_of(folder, name, *more).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(  # noqa: S603 (our own command)
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # Workers survive a killed main process for some seconds.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_of(folder: Path, name: str, *more: str) -> Path:
    """Return the log file of a run or of its resumption."""
    return folder / "logs" / f"{name}{''.join(more)}.log"


def run_through(folder: Path, name: str, workers: int, *more: str, limit: float) -> str:
    """Run `unet train` to its end; return the error, or an empty text."""
    with started(folder, name, workers, *more) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"did not end within {limit:.0f} seconds"
    if code == 0:
        return ""
    lines = log_of(folder, name, *more).read_text(encoding="utf-8").strip().splitlines()
    return f"exit code {code}: {' | '.join(lines[-3:])}"


def run_uninterrupted(folder: Path, workers: int) -> Uninterrupted:
    """Run without a kill."""
    from unet.checkpoint import load_checkpoint

    name, start = f"uninterrupted-{workers}", time.monotonic()
    if failure := run_through(folder, name, workers, limit=600):
        raise RuntimeError(f"{name}: {failure}")
    seconds, run = time.monotonic() - start, folder / "runs" / name
    steps = load_checkpoint(run / "last.pt")["progress"]["step"]
    return Uninterrupted(run, seconds, steps, (run / "last.pt").stat().st_size)


def wait_for(moment: Moment, process: subprocess.Popen, run: Path, size: int) -> None:
    """Return at the moment, or when the process has ended; it may be stopped by SIGSTOP."""
    if moment.seconds is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment.seconds)
        return
    while not run.exists():
        if process.poll() is not None:
            return
        time.sleep(0.001)
    count, latest, looked = 0, "", 0.0
    while True:  # without a pause, because writing a file takes only milliseconds
        files = {entry.name: entry for entry in os.scandir(run)}
        new = next((n for n in files if n.startswith(".next.pt.") and n.endswith(".tmp")), "")
        count += bool(new) and new != latest
        latest = new
        if count >= moment.save:
            if moment.stage == "writing" and new:
                with suppress(FileNotFoundError):
                    if files[new].stat().st_size >= moment.fraction * size:
                        return
            if moment.stage == "whole" and "next.pt" in files:
                return
            # The first checkpoint does not replace another one.
            whole_beside_last = {"next.pt", "last.pt"} <= files.keys()
            if moment.stage == "exchange" and whole_beside_last and stop_in_exchange(process, run):
                return
        if time.monotonic() - looked > 0.01:
            if process.poll() is not None:
                return
            looked = time.monotonic()


def stop_in_exchange(process: subprocess.Popen, run: Path) -> bool:
    """Try to stop a process after last.pt was renamed and before next.pt takes its place.

    This takes a few microseconds, less than a signal needs to arrive. Therefore the process is
    stopped and continued again and again, and advances a little each time.
    """
    end = time.monotonic() + 5
    while time.monotonic() < end:
        os.kill(process.pid, signal.SIGSTOP)
        # WNOWAIT: Popen must still see the end of the process.
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is None or state.si_code != os.CLD_STOPPED:
            return False
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if not (run / "last.pt").exists():
            return True
        whole = (run / "next.pt").exists()
        os.kill(process.pid, signal.SIGCONT)
        if not whole:  # too late
            break
    return False


def kill(process: subprocess.Popen, main_only: bool) -> bool:
    """Kill a process and, unless `main_only`, its workers; return whether it was still running."""
    if process.poll() is not None:
        return False
    if main_only:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def describe_progress(run: Path) -> str:
    """Describe the progress of a killed run."""
    from unet.checkpoint import load_checkpoint

    for name, note in (("last.pt", ""), ("previous.pt", " in previous.pt")):
        if (run / name).exists():
            try:
                return f"step {load_checkpoint(run / name)['progress']['step']}{note}"
            except ValueError:
                return f"{name} is damaged"
    return "before the first checkpoint"


def describe_save(run: Path) -> str:
    """Name the files that a killed run was saving; empty if there are none."""
    files = sorted(path.name for path in run.rglob(".*.tmp"))
    if (run / "next.pt").exists():
        files.append("next.pt" if (run / "last.pt").exists() else "next.pt, no last.pt")
    return ", ".join(files)


def differences(run: Path, other: Path) -> list[str]:
    """List the differences of two finished runs."""
    from unet.checkpoint import load_checkpoint

    found = []
    for name in ("last.pt", "best.pt"):
        try:
            contents = [flat(load_checkpoint(folder / name)) for folder in (run, other)]
        except (ValueError, FileNotFoundError) as error:
            found.append(str(error))
            continue
        keys = [key for key in contents[0] | contents[1] if not key.endswith(IGNORED)]
        missing = object()
        found += [
            f"{name} {key}"
            for key in keys
            if contents[0].get(key, missing) != contents[1].get(key, missing)
        ]
    if rows_of(run) != rows_of(other):
        found.append("metrics.csv")
    files, expected = (
        {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and "tensorboard" not in path.parts
        }
        for folder in (run, other)
    )
    found += [f"{name} is left over" for name in sorted(files - expected)]
    found += [f"{name} is missing" for name in sorted(expected - files)]
    return found


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Map dotted paths to the values of nested dicts and lists; tensors and floats as bits."""
    from torch import Tensor

    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        result = {f"{key}#": (type(value).__name__, len(value))}
        for inner, item in items:
            result |= flat(item, f"{key}.{inner}" if key else str(inner))
        return result
    if isinstance(value, Tensor):
        return {key: (value.dtype, value.shape, value.numpy().tobytes())}
    return {key: value.hex() if isinstance(value, float) else value}


def rows_of(run: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the time; none if there is no file."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: text for key, text in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]


def kill_one(
    folder: Path, number: int, uninterrupted: dict[int, Uninterrupted], rng: random.Random
) -> tuple[bool, bool]:
    """Do one round; return whether the weights are equal and whether the kill hit a save."""
    # Cycle through the eight combinations, mixed from the first rounds on.
    i = number - 1
    workers = WORKERS[i % 2]
    saving = bool((i + i // 2) % 2)
    main_only = bool((i + i // 4) % 2)
    base, name = uninterrupted[workers], f"round-{number}"
    run = folder / "runs" / name
    while True:
        moment = Moment.draw(rng, base, saving)
        with started(folder, name, workers) as process:
            start = time.monotonic()
            wait_for(moment, process, run, base.size)
            seconds = time.monotonic() - start
            if kill(process, main_only):
                # As a user would resume: workers of the killed process may still be alive.
                return finish(folder, number, workers, seconds, main_only, base)
        print(f"{number:3}  not killed, because the run had already ended; trying another moment")
        shutil.rmtree(run, ignore_errors=True)


def finish(
    folder: Path, number: int, workers: int, seconds: float, main_only: bool, base: Uninterrupted
) -> tuple[bool, bool]:
    """Resume a killed run, compare it, and print a line."""
    name = f"round-{number}"
    run = folder / "runs" / name
    step, half = describe_progress(run), describe_save(run)
    failure = run_through(folder, name, workers, "--resume", limit=120 + 10 * base.seconds)
    log = log_of(folder, name, "--resume").read_text(encoding="utf-8")
    if failure:
        result = f"RESUME FAILED, {failure}"
    elif differing := differences(run, base.run):
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        result = f"DIFFERENT: {', '.join(differing[:5])}{more}"
    else:
        result = "same weights"
        shutil.rmtree(run)
    parts = [
        f"{number:3}  killed {'without' if main_only and workers else 'with'} its {workers} "
        f"workers after {seconds:5.2f} s, {step}",
        *([f"while saving ({half})"] if half else []),
        *(["resumed from previous.pt"] if "previous.pt\n" in log else []),
        result,
    ]
    print("; ".join(parts), flush=True)
    return result == "same weights", bool(half)


def runs_of(folder: Path, name: str) -> dict[str, Path]:
    """Return the folders of a series by the part of their name that tells them apart."""
    found = sorted((folder / "runs").glob(f"{name}_*"))
    return {path.name.removeprefix(name): path for path in found if path.is_dir()}


def seconds_waited(pid: int) -> float:
    """Return how long the main thread of a process, which may have ended, waited for a CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9


def seconds_to_end(process: subprocess.Popen, send: Callable[[], None]) -> tuple[float, float]:
    """Send a signal and wait for the end; return the seconds, and those of waiting for a CPU."""
    before = seconds_waited(process.pid)
    send()
    start = time.monotonic()
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # Popen must still see the end of the process
    while os.waitid(os.P_PID, process.pid, options) is None:
        if time.monotonic() - start > LONGEST_WAIT:
            break
        time.sleep(0.01)
    return time.monotonic() - start, seconds_waited(process.pid) - before


def signal_one(
    folder: Path, number: int, seconds: dict[int, float], rng: random.Random
) -> tuple[bool, float, float]:
    """Do one round of --signals; return whether all went well, and how long the end took."""
    kind = number % len(SERIES)
    more, name, base = SERIES[kind], f"signal-{number}", f"series-{kind}"
    workers = WORKERS[number // 2 % 2]
    signum = rng.choice((signal.SIGTERM, signal.SIGINT))
    send = rng.choice((os.kill, os.killpg))
    ended = True
    while ended:
        for path in runs_of(folder, name).values():
            shutil.rmtree(path)
        moment = rng.uniform(0, seconds[kind])
        with started(folder, name, workers, *more) as process:
            time.sleep(moment)
            ended = process.poll() is not None
            if not ended:
                took, waited = seconds_to_end(process, lambda: send(process.pid, signum))
                code, failures = process.poll(), []
    text = log_of(folder, name, *more).read_text(encoding="utf-8")
    done = len(runs_of(folder, name))
    # Before and after `main`, the signal itself ends Python; shells give this the same code.
    if code not in (128 + signum, -signum):
        failures.append(f"exit code {code}")
    if took - waited > LONGEST_END:
        failures.append("ended too late")
    if "Traceback" in text:
        failures.append(f"traceback: {text.strip().splitlines()[-1]}")
    left_over = [one for one in (folder / "runs").rglob(".*.tmp") if f"{name}_" in str(one)]
    failures += [f"{path} is left over" for path in left_over]
    if failure := run_through(
        folder, name, workers, *more, "--resume", limit=120 + 10 * seconds[kind]
    ):
        failures.append(f"RESUME FAILED, {failure}")
    else:
        runs, expected = runs_of(folder, name), runs_of(folder, base)
        for key in expected:
            failures += [f"DIFFERENT: {key} {one}" for one in differences(runs[key], expected[key])]
    print(
        f"{number:3}  {signum.name} to the {'process' if send is os.kill else 'group'} after "
        f"{moment:5.2f} s, in run {done}, ended in {took:.2f} s ({waited:.2f} s of waiting for a "
        f"CPU) with {code}; {'; '.join(failures) or 'same weights'}",
        flush=True,
    )
    return not failures, took, took - waited


def send_kills(folder: Path, count: int, quick: bool, rng: random.Random) -> bool:
    """Do the rounds of --kills; return whether all went well."""
    uninterrupted = {workers: run_uninterrupted(folder, workers) for workers in WORKERS[:count]}
    for workers, one in uninterrupted.items():
        print(
            f"uninterrupted, {workers} workers: {one.seconds:.1f} s, {one.steps} steps", flush=True
        )
    first, *others = uninterrupted.values()
    for other in others:
        if found := differences(other.run, first.run):
            print(f"error: {other.run} differs by itself: {', '.join(found)}", file=sys.stderr)
            return False
    # Round 3 has no workers and is killed while saving, so that it never ends before the kill.
    numbers = (3,) if quick else range(1, count + 1)
    results = [kill_one(folder, number, uninterrupted, rng) for number in numbers]
    same, saving = (sum(column) for column in zip(*results, strict=True)) if results else (0, 0)
    print(f"{same} of {len(results)}: same weights; {saving} killed while saving")
    return same == len(results)


def send_signals(folder: Path, count: int, seed: int) -> bool:
    """Do the rounds of --signals; return whether all went well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    seconds = {}
    for kind, more in enumerate(SERIES):
        start = time.monotonic()
        if failure := run_through(folder, f"series-{kind}", 0, *more, limit=600):
            raise RuntimeError(f"series-{kind}: {failure}")
        seconds[kind] = time.monotonic() - start
        print(f"uninterrupted, {' '.join(more)}: {seconds[kind]:.1f} s", flush=True)

    def round_of(number: int) -> tuple[bool, float, float]:
        rng = random.Random(f"{seed} {number}")  # noqa: S311 (no secret)
        return signal_one(folder, number, seconds, rng)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = zip(*pool.map(round_of, range(1, count + 1)), strict=True)
    good, took, own = map(list, results)
    print(
        f"{sum(good)} of {count}: ended in time, same weights; the longest end took "
        f"{max(took):.2f} s, without waiting for a CPU {max(own):.2f} s"
    )
    return all(good)


def main() -> int:
    """Print one line for each round; return 0 if all weights are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="rounds (default: 50)")
    parser.add_argument("--signals", type=int, metavar="N", help="send N signals instead of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="new folder for data and runs (default: a temporary one, kept if a round fails)",
    )
    parser.add_argument("--quick", action="store_true", help="one kill of a very short run")
    arguments = parser.parse_args()
    given: Path | None = arguments.folder
    if given is not None and given.exists():
        print(f"error: {given}: exists; remove it, or pass --folder OTHER", file=sys.stderr)
        return 2
    folder = (given or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))).resolve()
    if arguments.quick:
        SETTINGS.extend(QUICK)
        arguments.kills = 1
    (folder / "logs").mkdir(parents=True)
    draw_quickstart(folder / "data" / "quickstart", 10 if arguments.quick else 60)
    rng = random.Random(arguments.seed)  # noqa: S311 (no secret)
    if arguments.signals is None:
        good = send_kills(folder, arguments.kills, arguments.quick, rng)
    else:
        good = send_signals(folder, arguments.signals, arguments.seed)
    if not good:
        print(f"the runs are in {folder / 'runs'}, the logs in {folder / 'logs'}")
        return 1
    if given is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
