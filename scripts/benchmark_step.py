"""Compare the time of our training step with a bare step and with U-Nets of other libraries.

The batch is synthetic and has the size of configs/isbi2012.yaml. The candidates are the bare step
that every loop needs, our step, and the bare step with the U-Nets of monai and
segmentation_models_pytorch if they are installed.

All candidates run in turn in one process, so that a noisy machine slows all of them down equally,
and ratios are computed within a round. Compare the rows of one run, not rows of two runs. Peak
memory is measured in a separate process for each candidate.
"""

import argparse
import ctypes
import importlib
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unet.build import build_network, build_optimizer, memory_format
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.models.losses import SegmentationLoss
from unet.runtime.device import memory_advice
from unet.runtime.seeds import Stream
from unet.training.schedule import learning_rate_multiplier
from unet.training.step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent
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
QUICK = ("model.widths=[4,8,16]", "augment.crop=[64,64]", "train.batch_size=2")
GOAL = 3  # percent over the bare step, at most


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
    """Update the weights with all that `unet.training.trainer.Trainer` does for it."""
    seed = np.random.SeedSequence([Stream.STEP, config.train.seed, number, 0])
    torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    multiplier = learning_rate_multiplier(
        number, num_steps=100_000, steps_per_epoch=1000, **vars(config.schedule)
    )
    with memory_advice(""):
        loss, norm = step.gradients([batch])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(f"the loss is {loss}, the gradients' norm {norm}")
        step.update(multiplier)


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
        net: nn.Module = build_network(config, device)
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
    optimizer = build_optimizer(config, net)
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


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser of what the benchmarks of training have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="changes to the config, such as 'model.widths=[16,32,64]'",
    )
    parser.add_argument("--devices", nargs="+", choices=devices, default=devices)
    parser.add_argument(
        "--quick", action="store_true", help="see that all runs, with numbers that mean nothing"
    )
    return parser


def main() -> int:
    """Print a table for each device."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="(default: 20)")
    parser.add_argument(
        "--steps",
        type=int,
        help="of a candidate in a round (default: 2, on CUDA 30)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time compiled steps too (default: yes, but not with --quick)",
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.settings = [*QUICK, *arguments.settings]
        arguments.rounds, arguments.steps = 2, 1
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
    if arguments.quick:
        precisions = ["float32"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.devices:
        steps = arguments.steps or (30 if name == "cuda" else 2)
        compare_steps(config, torch.device(name), precisions, arguments.rounds, steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
