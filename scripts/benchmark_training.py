"""Time our training beside a plain loop over the same network, and other libraries' U-Nets.

First single steps on one synthetic batch of the size in configs/isbi2012.yaml: the bare step that
no loop can do without, our step, and the bare step with the U-Nets of monai and
segmentation_models_pytorch, where they are installed. Then whole epochs: `unet.training.train`
beside a plain loop over the very same samples, with the seconds that it spends on validation,
logging, previews and saving taken apart. All are run in turn in one process, so that a noisy
machine slows them alike, and ratios are those within a round; compare the rows of one run, not
rows of two runs. Peak memory is that of a process of its own for each.
"""

import argparse
import ctypes
import functools
import importlib
import io
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unet import tracking, training
from unet.check import check_data
from unet.checkpoint import build_net, memory_format
from unet.config import Config
from unet.config_file import load_config
from unet.data import BatchStream
from unet.device import memory_advice, pick_dtype
from unet.losses import SegmentationLoss
from unet.quickstart import draw_quickstart
from unet.schedule import learning_rate_factor
from unet.step import TrainingStep
from unet.stopping import leave_signals_to_parent
from unet.tracking import Tracker

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("model.widths=[4,8,16]", "augment.crop=[64,64]", "train.batch_size=2")
PRECISIONS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "compiled": (torch.float32, True),
}
# Candidates for a step, and the package that each one's network is from.
CANDIDATES = {
    "bare step": "unet",
    "our step": "unet",
    "monai": "monai",
    "smp": "segmentation_models_pytorch",
}
NOTES = {
    "monai": "monai: its DynUNet of the same widths, whose convolutions have stride 2 where ours "
    "pools",
    "smp": "smp: segmentation_models_pytorch's Unet; its decoder has the same widths, its encoder "
    "is\n     another one, a resnet18, and all of another size",
}
GOAL, GOAL_WITH_ALL = 3, 6  # percent over the plain loop, at most
# What `train` does besides its steps.
USES = ("logging steps", "logging validations", "previews", "saving", "validation")
# Seconds, not counted, in which workers may load ahead as they do while `train` validates.
PAUSE = 0.5


@dataclass
class Times:
    """What a candidate took, a number of seconds for each round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def ratios(self, other: "Times") -> list[float]:
        """The time in each round as a multiple of the other's in the same round."""
        return [one / two for one, two in zip(self.seconds, other.seconds, strict=True)]

    def overhead(self, other: "Times") -> str:
        """How much longer than the other, in percent: the median, and the middle half."""
        percents = [100 * (ratio - 1) for ratio in self.ratios(other)]
        low, high = np.percentile(percents, (25, 75))
        return f"{statistics.median(percents):+.1f} % (middle half {low:+.1f} to {high:+.1f})"


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def monai_net(config: Config) -> nn.Module:
    """Make monai's closest relative: the same convolutions, but with stride 2 for pooling."""
    from monai.networks.nets import DynUNet

    widths = config.model.widths
    net: nn.Module = DynUNet(
        spatial_dims=2,
        in_channels=config.model.in_channels,
        out_channels=len(config.data.classes),
        kernel_size=[3] * len(widths),
        strides=[1] + [2] * (len(widths) - 1),
        upsample_kernel_size=[2] * (len(widths) - 1),
        filters=widths,
        norm_name="batch",
        act_name="relu",
    )
    return net


def smp_net(config: Config) -> nn.Module:
    """Make a decoder of the same widths behind the smallest common encoder."""
    from segmentation_models_pytorch import Unet

    net: nn.Module = Unet(
        "resnet18",
        encoder_depth=len(config.model.widths),
        encoder_weights=None,
        decoder_channels=config.model.widths[::-1],
        in_channels=config.model.in_channels,
        classes=len(config.data.classes),
    )
    return net


def reason_to_leave_out(name: str, config: Config) -> str | None:
    """Import a candidate's package and say why it cannot be run, if it cannot."""
    try:
        importlib.import_module(CANDIDATES[name])
    except ImportError as error:
        return f"it cannot be imported ({error}); see the extra bench"
    most = {"monai": math.inf, "smp": 5}.get(name)
    if most is not None and not 3 <= len(config.model.widths) <= most:
        return f"it has no network of {len(config.model.widths)} levels"
    return None


def bare_step(
    forward: Callable[[Tensor], Tensor],
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
    batch: tuple[Tensor, Tensor],
) -> None:
    """Update the weights and do nothing else."""
    images = batch[0].to(device, memory_format=layout, non_blocking=True)
    targets = batch[1].to(device, non_blocking=True)
    optimizer.zero_grad()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = loss_function(forward(images), targets)
    loss.backward()
    optimizer.step()


def our_step(config: Config, step: TrainingStep, number: int, batch: tuple[Tensor, Tensor]) -> None:
    """Update the weights with all that the loop of `unet.training.train` does for it."""
    seed = np.random.SeedSequence([4, config.train.seed, number, 0])
    torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    factor = learning_rate_factor(config.schedule, number, 100_000, 1000, [])
    with memory_advice(""):
        loss, norm = step.gradients([batch])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(f"the loss is {loss}, the gradients' norm {norm}")
        step.update(factor)


def make_step(
    name: str, precision: str, config: Config, device: torch.device
) -> tuple[Callable[[], None], int]:
    """Make a candidate's network and a batch; return what runs one step, and the parameters."""
    dtype, compiled = PRECISIONS[precision]
    assert config.augment.crop is not None
    torch.manual_seed(0)
    shape = (config.train.batch_size, config.model.in_channels, *config.augment.crop)
    images = torch.randn(shape)
    targets = torch.randint(len(config.data.classes), (shape[0], *shape[2:]))
    batch = (images, targets)
    if device.type == "cuda":
        batch = (images.pin_memory(), targets.pin_memory())
    layout = memory_format(config)
    if CANDIDATES[name] == "unet":
        net: nn.Module = build_net(config, device)
    else:
        net = {"monai": monai_net, "smp": smp_net}[name](config)
        net = net.to(device, memory_format=layout)  # type: ignore[call-overload]
    num_parameters = sum(p.numel() for p in net.parameters())
    # The config's own weights of the classes, but where they are counted in data.
    weights = config.loss.class_weights
    loss = SegmentationLoss(
        config.loss.cross_entropy,
        config.loss.dice,
        None if isinstance(weights, str) else weights,
    ).to(device)
    optimizer = training._optimizer(config.optimizer, net)
    if name == "our step":
        step = TrainingStep(net, loss, optimizer, dtype, compiled=compiled, memory_format=layout)
        numbers = count()
        return lambda: our_step(config, step, next(numbers), batch), num_parameters
    net.train()
    forward = torch.compile(net) if compiled else net
    return (
        lambda: bare_step(forward, loss, optimizer, dtype, device, layout, batch),
        num_parameters,
    )


def resident(name: str) -> float:
    """MiB of this process's memory, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10


def memory_of_step(name: str, precision: str, config: Config, device: torch.device) -> float:
    """MiB that steps take at their peak, with weights and batch; NaN where it cannot be known.

    To be run in a process of its own. What the libraries themselves take, and what compiling
    takes, is not counted.
    """
    if device.type != "cuda" and sys.platform != "linux":
        return math.nan
    tiny = replace(
        config,
        model=replace(config.model, widths=(4, 8)),
        augment=replace(config.augment, crop=(32, 32)),
    )
    first, _ = make_step("bare step", precision, tiny, device)
    first()  # libraries' own buffers are made once
    torch.compiler.reset()  # or it would compile for images of any size from here on
    before = torch.cuda.memory_allocated() if device.type == "cuda" else resident("VmRSS")
    step, _ = make_step(name, precision, config, device)
    for _ in range(2):
        step()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    for _ in range(2):
        step()
    synchronize(device)
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Not the peak of getrusage: a process that was begun by a large one inherits that one's.
    return resident("VmHWM") - before


def memory_in_new_process(name: str, precision: str, device: torch.device) -> float:
    """Run this script again for the memory of one candidate alone."""
    result = subprocess.run(  # noqa: S603  # this very script
        [
            *(sys.executable, __file__, *sys.argv[1:]),
            *("--memory-of", name, precision, device.type),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(result.stdout.split()[-1])


def compare_steps(
    config: Config, device: torch.device, precisions: Sequence[str], rounds: int, steps: int
) -> None:
    """Print a table of single steps, and what ours costs over the bare one."""
    crop, batch_size = config.augment.crop, config.train.batch_size
    assert crop is not None
    print(
        f"\n{device.type}: steps on a batch of {batch_size} x {config.model.in_channels} x "
        f"{crop[0]} x {crop[1]}, widths {', '.join(map(str, config.model.widths))}"
    )
    names = []
    for name in CANDIDATES:
        reason = reason_to_leave_out(name, config)
        if reason is None:
            names.append(name)
        else:
            print(f"{name}: left out, as {reason}")
    print(
        f"{'':21} {'ms: min':>9} {'median':>9} {'images/s':>9} {'of bare':>8} {'peak MiB':>9} "
        f"{'M parameters':>13}"
    )
    sentences = []
    for precision in precisions:
        torch.compiler.reset()
        row = {name: make_step(name, precision, config, device) for name in names}
        times = {name: Times() for name in names}
        for step, _ in row.values():
            for _ in range(3):
                step()  # what is done once is not counted
        for _ in range(rounds):
            # In random order: what ran before leaves its mark on cache and heap.
            for name in random.sample(names, len(names)):
                synchronize(device)
                start = time.perf_counter()
                for _ in range(steps):
                    row[name][0]()
                synchronize(device)
                times[name].seconds.append((time.perf_counter() - start) / steps)
        parameters = {name: count for name, (_, count) in row.items()}
        del row, step
        for name, one in times.items():
            ratio = statistics.median(one.ratios(times["bare step"]))
            print(
                f"{precision:10} {name:10} {1e3 * min(one.seconds):9.2f} {1e3 * one.median:9.2f} "
                f"{batch_size / one.median:9.1f} {ratio:8.3f} "
                f"{memory_in_new_process(name, precision, device):9.0f} "
                f"{parameters[name] / 1e6:13.3f}",
                flush=True,
            )
        sentences.append(
            f"{precision}: our step over the bare step "
            f"{times['our step'].overhead(times['bare step'])}; at most {GOAL} % are allowed"
        )
    print("\n".join([*sentences, *(NOTES[name] for name in names if name in NOTES)]))


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
            (training, "_validate", "validation"),
            (training, "save_checkpoint", "saving"),  # best.pt
            (training, "save_last", "saving"),
            (Tracker, "step", "logging steps"),
            (Tracker, "validation", "logging validations"),
            (tracking, "preview_sheet", "previews"),  # parts of the one above
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
        training.train(config, overwrite=True)
    # From the end of one validation to that of the last, which is a whole number of validations.
    (start, before), (stop, after) = stamps[0], stamps[-1]
    epochs = config.train.epochs - warm_up
    seconds = {use: (after[use] - before[use]) / epochs for use in USES}
    seconds["logging validations"] -= seconds["previews"]
    seconds["in all"] = (stop - start) / epochs
    return seconds


def plain_epochs(config: Config, device: torch.device, warm_up: int) -> tuple[float, int]:
    """Run the bare step over the samples of `train`; return seconds and steps of an epoch."""
    settings = config.train
    torch.compiler.reset()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        data = check_data(config)
    if data.faults:
        raise ValueError("\n".join(data.faults))
    dataset = training._training_set(config, data, data.normalization(config))
    torch.manual_seed(settings.seed)
    net = build_net(config, device).train()
    optimizer = training._optimizer(config.optimizer, net)
    loss = training._loss(config.loss, data.train.class_pixels.sum(0)).to(device)
    forward = torch.compile(net) if settings.compile else net
    dtype, layout = pick_dtype(settings.precision, device), memory_format(config)
    steps = settings.steps_per_epoch or math.ceil(len(dataset) / settings.batch_size)
    loader = DataLoader(
        dataset,
        batch_sampler=BatchStream(
            len(dataset), settings.batch_size, settings.seed, 0, settings.epochs * steps
        ),
        num_workers=settings.num_workers,
        worker_init_fn=leave_signals_to_parent,
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
    """Print a table of steps and a table of epochs for each device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="changes to both configs, such as 'model.widths=[16,32,64]' or train.compile=true, "
        "which is that of the epochs alone",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="to train on with configs/isbi2012.yaml; without it, that of configs/quickstart.yaml "
        "is drawn",
    )
    parser.add_argument("--devices", nargs="+", choices=devices, default=devices)
    parser.add_argument("--rounds", type=int, default=20, help="of single steps (default: 20)")
    parser.add_argument(
        "--steps",
        type=int,
        help="of a candidate in a round (default: 2, on CUDA 30)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=3,
        help="timed in a run, if need be more for a whole number of validations (default: 3)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each loop (default: 5)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time compiled steps too (default: yes, but not with --quick)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="see that all runs, with numbers that mean nothing"
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.settings = [*QUICK, *arguments.settings]
        arguments.rounds, arguments.steps, arguments.epochs, arguments.repeats = 2, 1, 1, 1
    data: Path | None = None if arguments.data is None else arguments.data.resolve()
    if data is not None and not data.is_dir():
        parser.error(f"--data: there is no folder {data}; get the data as data/README.md says")
    config = load_config(ROOT / "configs" / "isbi2012.yaml", arguments.settings)
    if config.augment.crop is None:
        parser.error("augment.crop: steps need one")
    if arguments.memory_of is not None:
        name, precision, device = arguments.memory_of
        assert reason_to_leave_out(name, config) is None
        print(memory_of_step(name, precision, config, torch.device(device)))
        return 0

    compiled = not arguments.quick if arguments.compile is None else arguments.compile
    precisions = [name for name, (_, compiles) in PRECISIONS.items() if compiled or not compiles]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.devices:
        device = torch.device(name)
        steps = arguments.steps or (30 if name == "cuda" else 2)
        compare_steps(config, device, precisions, arguments.rounds, steps)
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            if data is None:
                root, source = Path(folder) / "quickstart", "drawn cells (configs/quickstart.yaml)"
                draw_quickstart(root, 10 if arguments.quick else 60)
            else:
                root, source = data, f"{data} (configs/isbi2012.yaml)"
            path = ROOT / "configs" / f"{'quickstart' if data is None else 'isbi2012'}.yaml"
            loop_config = load_config(path, [*arguments.settings, f"data.root={root}"])
            compare_loops(loop_config, device, arguments.epochs, arguments.repeats, source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
