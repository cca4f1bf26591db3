"""Compare the speed of our training with a plain loop over the same network and samples.

Whole epochs are measured. The seconds that `unet.train` spends on validation, logging, previews and
saving are shown separately. Both loops run in turn in one process, so that a noisy machine slows
both of them down equally, and ratios are computed within a round. Compare the rows of one run, not
rows of two runs. train.compile=true compiles both. `benchmark_step.py` measures single steps.
"""

import functools
import io
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmark_step import QUICK, bare_step, make_training_parser
from benchmarking import Times, synchronize

import unet
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.data.loader import load_samples
from unet.data.sampler import SeededBatchSampler
from unet.data.synthetic import draw_quickstart
from unet.runtime.device import pick_dtype
from unet.training import logger
from unet.training import trainer as loop
from unet.training.initial_weights import InitialWeights
from unet.training.train import build_trainer, check_training_data

ROOT = Path(__file__).resolve().parent.parent
GOAL, GOAL_WITH_ALL = 3, 6  # percent more time than the plain loop, at most
# The functions whose time is shown separately. Previews are a component of the logging.
MEASURED = (
    (loop.Trainer, "_score", "validation"),
    (loop, "save_checkpoint", "saving"),  # best.pt
    (loop, "save_last", "saving"),
    (logger.RunLogger, "step", "logging of steps"),
    (logger.RunLogger, "validation", "logging of validations"),
    (logger, "draw_preview_sheet", "previews"),
    (logger, "save_picture", "previews"),
)
PURPOSES = tuple(dict.fromkeys(purpose for _, _, purpose in MEASURED))
# Seconds, not counted, in which workers may load samples as they do while `train` validates.
PAUSE = 0.5


@contextmanager
def measure_parts(device: torch.device) -> Iterator[list[tuple[float, dict[str, float]]]]:
    """Measure the seconds of the functions in `MEASURED`.

    Yields:
        A list that grows by an item after each validation: the time, and the seconds so far by
        their purpose.
    """
    seconds = dict.fromkeys(PURPOSES, 0.0)
    stamps: list[tuple[float, dict[str, float]]] = []

    def wrap(owner: Any, attribute: str, purpose: str) -> Any:
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if attribute != "step":  # it does not use the device
                synchronize(device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            now = time.perf_counter()
            seconds[purpose] += now - start
            if attribute == "validation":
                stamps.append((now, seconds.copy()))
            return result

        return patch.object(owner, attribute, wrapper)

    with ExitStack() as stack:
        for owner, attribute, purpose in MEASURED:
            stack.enter_context(wrap(owner, attribute, purpose))
        yield stamps


@contextmanager
def quiet() -> Iterator[None]:
    """Print nothing."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def run_ours(config: Config, device: torch.device, warm_up: int) -> dict[str, float]:
    """Train; return the seconds of an epoch after the warm-up, in total and by purpose."""
    torch.compiler.reset()  # torch limits how many networks of a type it compiles
    with measure_parts(device) as stamps, quiet():
        unet.train(config, overwrite=True)
    # From the end of the first validation to the end of the last one.
    (start, before), (stop, after) = stamps[0], stamps[-1]
    epochs = config.train.epochs - warm_up
    seconds = {one: (after[one] - before[one]) / epochs for one in PURPOSES}
    # Otherwise a function in `MEASURED` is no longer called; there may be no previews.
    assert all(seconds[one] for one in PURPOSES if one != "previews"), seconds
    seconds["logging of validations"] -= seconds["previews"]
    seconds["total"] = (stop - start) / epochs
    return seconds


def run_plain(config: Config, device: torch.device, warm_up: int) -> tuple[float, int]:
    """Run the bare step over the samples of `train`; return seconds and steps of an epoch."""
    settings = config.train
    torch.compiler.reset()
    with quiet():
        data = check_training_data(config)
        trainer = build_trainer(Path(), config, data, device, InitialWeights(), None)
    dataset, step = trainer.dataset, trainer.training_step
    net = trainer.net.train()
    forward = torch.compile(net) if settings.compile else net
    steps = settings.steps_per_epoch or math.ceil(len(dataset) / settings.batch_size)
    batches = load_samples(
        dataset,
        batch_sampler=SeededBatchSampler(
            len(dataset), settings.batch_size, settings.seed, 0, settings.epochs * steps
        ),
        num_workers=settings.num_workers,
        pin_memory=device.type == "cuda",
    )
    seconds, start = 0.0, time.perf_counter()
    for number, batch in enumerate(batches, 1):
        bare_step(
            forward,
            step.loss_function,
            step.optimizer,
            step.dtype,
            device,
            step.memory_format,
            batch,
        )
        if number % (warm_up * steps) == 0:  # here `train` validates
            synchronize(device)
            if number > warm_up * steps:
                seconds += time.perf_counter() - start
            time.sleep(PAUSE)
            start = time.perf_counter()
    return seconds / (settings.epochs - warm_up), steps


def compare_loops(
    config: Config, device: torch.device, epochs: int, repeats: int, source: str
) -> None:
    """Print a table of the seconds of an epoch, and how much more time our loop takes."""
    if config.train.accumulate != 1:
        raise ValueError(
            f"train.accumulate: got {config.train.accumulate}, expected 1, because the plain loop "
            "does not accumulate; leave it out"
        )
    # Both the warm-up and the measured epochs end with a validation.
    warm_up = config.train.validate_every
    validations = math.ceil(epochs / warm_up)
    settings = replace(config.train, epochs=warm_up * (1 + validations), device=device.type)
    config = replace(config, name="benchmark", train=settings)
    plain, alone, with_all = Times(), Times(), Times()
    parts: dict[str, list[float]] = {one: [] for one in PURPOSES}
    steps = 0
    for _ in range(repeats):
        for candidate in random.sample(("plain", "ours"), 2):
            if candidate == "plain":
                seconds, steps = run_plain(config, device, warm_up)
                plain.seconds.append(seconds)
            else:
                spent = run_ours(config, device, warm_up)
                for one in PURPOSES:
                    parts[one].append(spent[one])
                with_all.seconds.append(spent["total"] - spent["validation"])
                alone.seconds.append(spent["total"] - sum(spent[one] for one in PURPOSES))
    dtype = str(pick_dtype(config.train.precision, device)).removeprefix("torch.")
    print(
        f"\n{device.type}: training on {source}, {dtype}, {config.train.num_workers} workers\n"
        f"{repeats} run(s) of {validations * warm_up} epoch(s) with {steps} steps each and "
        f"{validations} validation(s), after {warm_up} epoch(s) of warm-up"
    )
    print(f"{'seconds of an epoch':46} {'min':>9} {'median':>9} {'of plain':>9}")
    for title, one in (
        ("plain loop", plain),
        ("our loop alone", alone),
        ("our loop with logging, previews and saving", with_all),
    ):
        ratio = statistics.median(one.ratios(plain))
        print(f"{title:46} {min(one.seconds):9.3f} {one.median:9.3f} {ratio:9.3f}")
    for purpose, numbers in parts.items():
        title = f"{purpose}{' (not counted above)' if purpose == 'validation' else ''}"
        median = statistics.median(numbers)
        print(f"  {title:44} {min(numbers):9.3f} {median:9.3f} {median / plain.median:9.3f}")
    print(
        f"our loop over the plain loop {alone.overhead(plain)}; the goal is at most {GOAL} %\n"
        f"with logging, previews and saving {with_all.overhead(plain)}; the goal is at most "
        f"{GOAL_WITH_ALL} %"
    )


def main(argv: list[str] | None = None) -> int:
    """Print a table for each device."""
    parser = make_training_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="data for configs/isbi2012.yaml (default: drawn, with configs/quickstart.yaml)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=3,
        help="measured in a run, rounded up to a whole number of validations (default: 3)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each loop (default: 5)")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        quick = ("train.num_workers=0", "train.previews=1")
        arguments.settings = [*QUICK, *quick, *arguments.settings]
        arguments.epochs, arguments.repeats = 1, 1
    data: Path | None = None if arguments.data is None else arguments.data.resolve()
    if data is not None and not data.is_dir():
        parser.error(f"--data: there is no folder {data}; get the data as data/README.md says")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.devices:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            if data is None:
                root, source = Path(folder) / "quickstart", "drawn cells (configs/quickstart.yaml)"
                draw_quickstart(root, 6 if arguments.quick else 60)
            else:
                root, source = data, f"{data} (configs/isbi2012.yaml)"
            path = ROOT / "configs" / f"{'quickstart' if data is None else 'isbi2012'}.yaml"
            config = load_config(path, [*arguments.settings, f"data.root={root}"])
            device = torch.device(name)
            compare_loops(config, device, arguments.epochs, arguments.repeats, source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
