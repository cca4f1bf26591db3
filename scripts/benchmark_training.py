"""Time whole epochs of our training beside a plain loop over the same network and samples.

`unet.training.trainer.train` beside a plain loop over the same samples, with the seconds that it
spends on validation, logging, previews and saving taken apart. Both are run in turn in one process,
so that a noisy machine slows them alike, and ratios are those within a round; compare the rows of
one run, not rows of two runs. train.compile=true compiles both. `benchmark_step.py` times single
steps.
"""

import functools
import io
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmark_step import QUICK, Times, bare_step, benchmark_parser, synchronize
from torch.utils.data import DataLoader

from unet.build import (
    build_dataset,
    build_loss,
    build_network,
    build_optimizer,
    build_training_reader,
    memory_format,
)
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.data.sampler import SeededBatchSampler
from unet.data.synthetic import draw_quickstart
from unet.inspection.check import check_data
from unet.runtime.device import pick_dtype
from unet.runtime.signals import ignore_signals_in_worker
from unet.training import logger as tracking
from unet.training import trainer as loop
from unet.training.logger import RunLogger

ROOT = Path(__file__).resolve().parent.parent
GOAL, GOAL_WITH_ALL = 3, 6  # percent over the plain loop, at most
# What `train` does besides its steps.
USES = ("logging steps", "logging validations", "previews", "saving", "validation")
# Seconds, not counted, in which workers may load ahead as they do while `train` validates.
PAUSE = 0.5


@contextmanager
def taken_apart(device: torch.device) -> Iterator[list[tuple[float, dict[str, float]]]]:
    """Take the time of what `train` does besides its steps.

    Yields:
        A list that each validation, once it is logged, adds a time to, and the seconds spent up to
        then by what they were spent on.
    """
    seconds = dict.fromkeys(USES, 0.0)
    stamps: list[tuple[float, dict[str, float]]] = []

    def timed(owner: Any, attribute: str, what: str) -> Any:
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if attribute != "step":  # which asks nothing of the device
                synchronize(device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            now = time.perf_counter()
            seconds[what] += now - start
            if attribute == "validation":
                stamps.append((now, seconds.copy()))
            return result

        return patch.object(owner, attribute, wrapper)

    with ExitStack() as stack:
        for owner, attribute, what in (
            (loop.Trainer, "_score", "validation"),
            (loop, "save_checkpoint", "saving"),  # best.pt
            (loop, "save_last", "saving"),
            (RunLogger, "step", "logging steps"),
            (RunLogger, "validation", "logging validations"),
            (tracking, "draw_preview_sheet", "previews"),  # parts of the one above
            (tracking, "save_picture", "previews"),
        ):
            stack.enter_context(timed(owner, attribute, what))
        yield stamps


def our_epochs(config: Config, device: torch.device, warm_up: int) -> dict[str, float]:
    """Train, and return the seconds of an epoch after the warm-up, in all and by their use."""
    torch.compiler.reset()  # as torch compiles only so many networks of a kind, then no more
    with (
        taken_apart(device) as stamps,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        loop.train(config, overwrite=True)
    # From the end of one validation to that of the last, which is a whole number of validations.
    (start, before), (stop, after) = stamps[0], stamps[-1]
    epochs = config.train.epochs - warm_up
    seconds = {use: (after[use] - before[use]) / epochs for use in USES}
    # Or what is patched is no longer called; there may be no previews.
    assert all(seconds[use] for use in USES if use != "previews"), seconds
    seconds["logging validations"] -= seconds["previews"]
    seconds["in all"] = (stop - start) / epochs
    return seconds


def plain_epochs(config: Config, device: torch.device, warm_up: int) -> tuple[float, int]:
    """Run the bare step over the samples of `train`; return seconds and steps of an epoch."""
    settings = config.train
    torch.compiler.reset()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        data = check_data(config)
    if data.errors:
        raise ValueError("\n".join(data.errors))
    reader = build_training_reader(config)
    dataset = build_dataset(
        config,
        data.train_pairs,
        reader,
        data.normalization(config),
        data.train.sizes,
        data.train.num_bytes,
    )
    torch.manual_seed(settings.seed)
    net = build_network(config, device).train()
    optimizer = build_optimizer(config, net)
    loss = build_loss(config, data.train.class_pixels.sum(0)).to(device)
    forward = torch.compile(net) if settings.compile else net
    dtype, layout = pick_dtype(settings.precision, device), memory_format(config)
    steps = settings.steps_per_epoch or math.ceil(len(dataset) / settings.batch_size)
    loader = DataLoader(
        dataset,
        batch_sampler=SeededBatchSampler(
            len(dataset), settings.batch_size, settings.seed, 0, settings.epochs * steps
        ),
        num_workers=settings.num_workers,
        worker_init_fn=ignore_signals_in_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    spent, start = 0.0, time.perf_counter()
    for number, batch in enumerate(loader, 1):
        bare_step(forward, loss, optimizer, dtype, device, layout, batch)
        if number % (warm_up * steps) == 0:  # where `train` validates
            synchronize(device)
            if number > warm_up * steps:
                spent += time.perf_counter() - start
            time.sleep(PAUSE)
            start = time.perf_counter()
    return spent / (settings.epochs - warm_up), steps


def compare_loops(
    config: Config, device: torch.device, epochs: int, repeats: int, source: str
) -> None:
    """Print a table of an epoch's seconds, and what our loop costs over the plain one."""
    # Both the warm-up and what is timed end with a validation.
    warm_up = config.train.validate_every
    validations = math.ceil(epochs / warm_up)
    config = replace(
        config,
        name="benchmark",
        train=replace(config.train, epochs=warm_up * (1 + validations), device=device.type),
    )
    if config.train.accumulate != 1:
        raise ValueError("train.accumulate: the plain loop has none; leave it at 1")
    plain, alone, with_all = Times(), Times(), Times()
    parts: dict[str, list[float]] = {use: [] for use in USES}
    steps = 0
    for _ in range(repeats):
        for what in random.sample(("plain", "ours"), 2):
            if what == "plain":
                seconds, steps = plain_epochs(config, device, warm_up)
                plain.seconds.append(seconds)
            else:
                spent = our_epochs(config, device, warm_up)
                for use in USES:
                    parts[use].append(spent[use])
                with_all.seconds.append(spent["in all"] - spent["validation"])
                alone.seconds.append(spent["in all"] - sum(spent[use] for use in USES))
    dtype = str(pick_dtype(config.train.precision, device)).removeprefix("torch.")
    print(
        f"\n{device.type}: training on {source}, {dtype}, "
        f"{config.train.num_workers} workers\n"
        f"{repeats} time(s) {validations * warm_up} epochs of {steps} steps with {validations} "
        f"validation(s), after {warm_up} epoch(s) to warm up"
    )
    print(f"{'seconds of an epoch':46} {'min':>9} {'median':>9} {'of plain':>9}")
    for title, one in (
        ("plain loop", plain),
        ("our loop, without what follows", alone),
        ("our loop with logging, previews and saving", with_all),
    ):
        ratio = statistics.median(one.ratios(plain))
        print(f"{title:46} {min(one.seconds):9.3f} {one.median:9.3f} {ratio:9.3f}")
    for use in USES:
        title = "not counted above: validation" if use == "validation" else f"of which {use}"
        median = statistics.median(parts[use])
        print(f"  {title:44} {min(parts[use]):9.3f} {median:9.3f} {median / plain.median:9.3f}")
    print(
        f"our loop over the plain loop {alone.overhead(plain)}; at most {GOAL} % are allowed\n"
        f"with logging, previews and saving {with_all.overhead(plain)}; at most "
        f"{GOAL_WITH_ALL} % are allowed"
    )


def main() -> int:
    """Print a table for each device."""
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="to train on with configs/isbi2012.yaml; without it, that of configs/quickstart.yaml "
        "is drawn",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=3,
        help="timed in a run, if need be more for a whole number of validations (default: 3)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each loop (default: 5)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.settings = [*QUICK, *arguments.settings]
        arguments.epochs, arguments.repeats = 1, 1
    data: Path | None = None if arguments.data is None else arguments.data.resolve()
    if data is not None and not data.is_dir():
        parser.error(f"--data: there is no folder {data}; get the data as data/README.md says")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.devices:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            if data is None:
                root, source = Path(folder) / "quickstart", "drawn cells (configs/quickstart.yaml)"
                draw_quickstart(root, 10 if arguments.quick else 60)
            else:
                root, source = data, f"{data} (configs/isbi2012.yaml)"
            path = ROOT / "configs" / f"{'quickstart' if data is None else 'isbi2012'}.yaml"
            config = load_config(path, [*arguments.settings, f"data.root={root}"])
            device = torch.device(name)
            compare_loops(config, device, arguments.epochs, arguments.repeats, source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
