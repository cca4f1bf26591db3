"""Kill training at random moments, resume it, and compare the weights with an undisturbed run's.

A small run on the quickstart data saves after every step. Each round starts one anew, kills it with
SIGKILL, lets `--resume` finish it and compares last.pt, best.pt and metrics.csv bit for bit with
those of a run that was left alone. Half of the moments are drawn from the whole duration of a run,
half from those at which a checkpoint is written or takes the place of the one before; half of the
kills hit the workers that load samples as well, and half of the runs have such workers.

All is computed on the CPU by one thread each, as sums depend on the number of threads. The moments
are drawn from --seed, but what a process has done by then is up to the machine. Linux only.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unet.data.synthetic import draw_quickstart

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    "model.widths=[8,16]",
    "augment.crop=[64,64]",
    "train.epochs=3",
    "train.ema_decay=0.9",
    "train.save_every_steps=1",
    "train.previews=1",
    "train.device=cpu",
)
WORKERS = (0, 2)
# What may differ between two runs that computed the same.
BESIDES = ("seconds", "config.name", "config.train.num_workers")


@dataclass(frozen=True)
class Undisturbed:
    """A run that was left alone, beside which the others are held."""

    run: Path
    seconds: float
    steps: int
    size: int  # of last.pt in bytes


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Args:
        seconds: after the start; None for while saving.
        save: with which checkpoint to begin to look for the moment while saving, 1 for the first.
        stage: of saving: the file is being written; next.pt is whole; last.pt has made way for it.
        share: of the file that is written by then.
    """

    seconds: float | None = None
    save: int = 1
    stage: Literal["writing", "whole", "exchange"] = "writing"
    share: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random, undisturbed: Undisturbed, saving: bool) -> "Moment":
        """Draw one by lot."""
        if not saving:
            return cls(seconds=rng.uniform(0, undisturbed.seconds))
        return cls(
            save=rng.randint(1, undisturbed.steps),
            stage=rng.choice(("writing", "writing", "whole", "exchange")),
            share=rng.random(),
        )


@contextmanager
def started(folder: Path, name: str, workers: int, *more: str) -> Iterator[subprocess.Popen]:
    """Start `unet train`, with what it says in a log; at the end none of it is left."""
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
        # Workers outlive a main process that was killed by some seconds.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_of(folder: Path, name: str, *more: str) -> Path:
    """Where a run, or its resumption, says what it does."""
    return folder / "logs" / f"{name}{''.join(more)}.log"


def run_through(folder: Path, name: str, workers: int, *more: str, limit: float) -> str:
    """Run `unet train` to its end; return what went wrong, or nothing."""
    with started(folder, name, workers, *more) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"did not end within {limit:.0f} seconds"
    if code == 0:
        return ""
    lines = log_of(folder, name, *more).read_text(encoding="utf-8").strip().splitlines()
    return f"exit code {code}: {' | '.join(lines[-3:])}"


def run_undisturbed(folder: Path, workers: int) -> Undisturbed:
    """Run once without a kill."""
    from unet.checkpoint import load_checkpoint

    name, start = f"undisturbed-{workers}", time.monotonic()
    if fault := run_through(folder, name, workers, limit=600):
        raise RuntimeError(f"{name}: {fault}")
    seconds, run = time.monotonic() - start, folder / "runs" / name
    steps = load_checkpoint(run / "last.pt")["progress"]["step"]
    return Undisturbed(run, seconds, steps, (run / "last.pt").stat().st_size)


def wait_for(moment: Moment, process: subprocess.Popen, run: Path, size: int) -> None:
    """Return at the moment, with the process perhaps stopped, or when it has ended before."""
    if moment.seconds is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment.seconds)
        return
    while not run.exists():
        if process.poll() is not None:
            return
        time.sleep(0.001)
    count, latest, looked = 0, "", 0.0
    while True:  # without a pause, as a file is written in some milliseconds
        files = {entry.name: entry for entry in os.scandir(run)}
        new = next((n for n in files if n.startswith(".next.pt.") and n.endswith(".tmp")), "")
        count += bool(new) and new != latest
        latest = new
        if count >= moment.save:
            if moment.stage == "writing" and new:
                with suppress(FileNotFoundError):
                    if files[new].stat().st_size >= moment.share * size:
                        return
            if moment.stage == "whole" and "next.pt" in files:
                return
            # The first checkpoint of all takes nobody's place.
            whole_beside_last = {"next.pt", "last.pt"} <= files.keys()
            if moment.stage == "exchange" and whole_beside_last and stop_in_exchange(process, run):
                return
        if time.monotonic() - looked > 0.01:
            if process.poll() is not None:
                return
            looked = time.monotonic()


def stop_in_exchange(process: subprocess.Popen, run: Path) -> bool:
    """Stop a process between last.pt's making way and next.pt's taking its place, if it goes well.

    That lasts a few microseconds, less than a signal takes to arrive. So the process is stopped and
    let go on again and again, and advances by a little each time.
    """
    end = time.monotonic() + 5
    while time.monotonic() < end:
        os.kill(process.pid, signal.SIGSTOP)
        # An end is left to be noticed by Popen.
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is None or state.si_code != os.CLD_STOPPED:
            return False
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if not (run / "last.pt").exists():
            return True
        whole = (run / "next.pt").exists()
        os.kill(process.pid, signal.SIGCONT)
        if not whole:  # it was too quick
            break
    return False


def kill(process: subprocess.Popen, main_only: bool) -> bool:
    """Kill a process, and its workers as well; return whether there was still one to kill."""
    if process.poll() is not None:
        return False
    if main_only:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def reached(run: Path) -> str:
    """How far a killed run has come."""
    from unet.checkpoint import load_checkpoint

    for name, note in (("last.pt", ""), ("previous.pt", " in previous.pt")):
        if (run / name).exists():
            try:
                return f"step {load_checkpoint(run / name)['progress']['step']}{note}"
            except ValueError:
                return f"{name} is damaged"
    return "before the first checkpoint"


def half_done(run: Path) -> str:
    """What a killed run was just saving, or nothing."""
    files = sorted(path.name for path in run.rglob(".*.tmp"))
    if (run / "next.pt").exists():
        files.append("next.pt" if (run / "last.pt").exists() else "next.pt, no last.pt")
    return ", ".join(files)


def differences(run: Path, other: Path) -> list[str]:
    """Say in what two finished runs differ."""
    from unet.checkpoint import load_checkpoint

    found = []
    for name in ("last.pt", "best.pt"):
        try:
            contents = [flat(load_checkpoint(folder / name)) for folder in (run, other)]
        except (ValueError, FileNotFoundError) as error:
            found.append(str(error))
            continue
        keys = [key for key in contents[0] | contents[1] if not key.endswith(BESIDES)]
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
    """Values of nested dicts and lists by their dotted path; of tensors and floats, the bits."""
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
    """The lines of metrics.csv but for the time that was taken; none where there is no file."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: text for key, text in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]


def kill_one(
    folder: Path, number: int, undisturbed: dict[int, Undisturbed], rng: random.Random
) -> tuple[bool, bool]:
    """Do one round; return whether the weights are the same, and whether it was while saving."""
    # The eight combinations come in turn, and the first rounds already mix them.
    i = number - 1
    workers = WORKERS[i % 2]
    saving = bool((i + i // 2) % 2)
    main_only = bool((i + i // 4) % 2)
    base, name = undisturbed[workers], f"round-{number}"
    run = folder / "runs" / name
    while True:
        moment = Moment.draw(rng, base, saving)
        with started(folder, name, workers) as process:
            start = time.monotonic()
            wait_for(moment, process, run, base.size)
            seconds = time.monotonic() - start
            if kill(process, main_only):
                # As a person would resume it: workers of the killed process may still be there.
                return finish(folder, number, workers, seconds, main_only, base)
        print(f"{number:3}  not killed: the run was over before; another moment is drawn")
        shutil.rmtree(run, ignore_errors=True)


def finish(
    folder: Path, number: int, workers: int, seconds: float, main_only: bool, base: Undisturbed
) -> tuple[bool, bool]:
    """Resume a killed run, compare it, and print the line of its round."""
    name = f"round-{number}"
    run = folder / "runs" / name
    step, half = reached(run), half_done(run)
    fault = run_through(folder, name, workers, "--resume", limit=60 + 10 * base.seconds)
    said = log_of(folder, name, "--resume").read_text(encoding="utf-8")
    if fault:
        result = f"RESUME FAILED, {fault}"
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
        *(["went on from previous.pt"] if "previous.pt instead" in said else []),
        result,
    ]
    print("; ".join(parts), flush=True)
    return result == "same weights", bool(half)


def main() -> int:
    """Print one line for each round; 0 if all ended in the same weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="rounds (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="new folder for data and runs (default: a temporary one, kept if a round fails)",
    )
    arguments = parser.parse_args()
    given: Path | None = arguments.folder
    if given is not None and given.exists():
        print(f"error: {given}: exists; remove it, or pass --folder OTHER", file=sys.stderr)
        return 2
    folder = (given or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))).resolve()
    (folder / "logs").mkdir(parents=True)
    draw_quickstart(folder / "data" / "quickstart")
    undisturbed = {workers: run_undisturbed(folder, workers) for workers in WORKERS}
    for workers, one in undisturbed.items():
        print(f"undisturbed, {workers} workers: {one.seconds:.1f} s, {one.steps} steps", flush=True)
    first, *others = undisturbed.values()
    for other in others:
        if found := differences(other.run, first.run):
            print(f"error: {other.run} differs by itself: {', '.join(found)}", file=sys.stderr)
            return 1
    rng = random.Random(arguments.seed)  # noqa: S311 (no secret)
    results = [
        kill_one(folder, number, undisturbed, rng) for number in range(1, arguments.kills + 1)
    ]
    same, saving = (sum(column) for column in zip(*results, strict=True)) if results else (0, 0)
    print(f"{same} of {len(results)}: same weights; {saving} killed while saving")
    if same < len(results):
        print(f"what differs is in {folder / 'runs'}, what was said in {folder / 'logs'}")
        return 1
    if given is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
