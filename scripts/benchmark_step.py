"""Compare the speed and memory of our training step with a bare step and with other libraries.

All use one synthetic batch of the size in configs/isbi2012.yaml. The bare step does only what no
loop can do without. If monai and segmentation_models_pytorch are installed, their U-Nets run in the
bare step, too.

All candidates run in turn in one process, so that a noisy machine slows all of them down equally,
and ratios are computed within a round. Compare the rows of one run, not rows of two runs. Peak
memory is measured in a new process for each candidate.
"""

import argparse
import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from benchmarking import (
    MemoryMeter,
    list_devices,
    make_parser,
    run_in_new_process,
    time_in_turns,
)
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
# The candidates, and the package of each one's network.
CANDIDATES = {
    "bare step": "unet",
    "our step": "unet",
    "monai": "monai",
    "smp": "segmentation_models_pytorch",
}
NOTES = {
    "monai": "monai: its DynUNet with the same widths; its convolutions have stride 2 where our "
    "network has max pooling",
    "smp": "smp: the Unet of segmentation_models_pytorch; its decoder has the same widths, its "
    "encoder is a resnet18",
}
QUICK = ("model.widths=[4,8]", "augment.crop=[32,32]", "train.batch_size=2")
GOAL = 3  # percent more time than the bare step, at most

Step = Callable[[], None]


def monai_net(config: Config) -> nn.Module:
    """Make monai's most similar network: the same convolutions, but with stride for pooling."""
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
    """Make a decoder with the same widths and the smallest common encoder."""
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
    """Return why a candidate cannot run; None if it can."""
    try:
        importlib.import_module(CANDIDATES[name])
    except ImportError as error:
        return f"it cannot be imported ({error}); see the extra bench"
    most = {"monai": math.inf, "smp": 5}.get(name)
    if most is not None and not 3 <= len(config.model.widths) <= most:
        return f"it has no network with {len(config.model.widths)} levels"
    return None


def bare_step(
    forward: Callable[[Tensor], Tensor],
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
    batch: Sequence[Tensor],
) -> None:
    """Update the weights and do nothing else."""
    images = batch[0].to(device, memory_format=layout, non_blocking=True)
    targets = batch[1].to(device, non_blocking=True)
    optimizer.zero_grad()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = loss_function(forward(images), targets)
    loss.backward()
    optimizer.step()


def our_step(config: Config, step: TrainingStep, number: int, batch: Sequence[Tensor]) -> None:
    """Update the weights as `unet.training.trainer.Trainer` does."""
    seed = np.random.SeedSequence([Stream.STEP, config.train.seed, number, 0])
    torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    multiplier = learning_rate_multiplier(
        number, num_steps=100_000, steps_per_epoch=1000, **vars(config.schedule)
    )
    with memory_advice(""):
        loss, norm = step.gradients([batch])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(f"the loss is {loss}, the norm of the gradients {norm}")
        step.update(multiplier)


def make_step(name: str, precision: str, config: Config, device: torch.device) -> tuple[Step, int]:
    """Make a candidate with a batch; return its step and its number of parameters."""
    dtype, compiled = PRECISIONS[precision]
    assert config.augment.crop is not None
    torch.manual_seed(0)
    shape = (config.train.batch_size, config.model.in_channels, *config.augment.crop)
    batch = [torch.randn(shape), torch.randint(len(config.data.classes), (shape[0], *shape[2:]))]
    if device.type == "cuda":
        batch = [tensor.pin_memory() for tensor in batch]
    layout = memory_format(config)
    if CANDIDATES[name] == "unet":
        net: nn.Module = build_network(config, device)
    else:
        net = {"monai": monai_net, "smp": smp_net}[name](config)
        net = net.to(device, memory_format=layout)  # type: ignore[call-overload]
    num_parameters = sum(p.numel() for p in net.parameters())
    weights = config.loss.class_weights
    if isinstance(weights, str):  # computed from data, which there is none of
        weights = None
    loss = SegmentationLoss(config.loss.cross_entropy, config.loss.dice, weights).to(device)
    if name == "our step":
        optimizer = build_optimizer(config, net)
        step = TrainingStep(net, loss, optimizer, dtype, compiled=compiled, memory_format=layout)
        numbers = count()
        return lambda: our_step(config, step, next(numbers), batch), num_parameters
    settings = replace(config, optimizer=replace(config.optimizer, encoder_lr=None))
    optimizer = build_optimizer(settings, net)
    net.train()
    forward = torch.compile(net) if compiled else net
    return (
        lambda: bare_step(forward, loss, optimizer, dtype, device, layout, batch),
        num_parameters,
    )


def measure_memory(name: str, precision: str, config: Config, device: torch.device) -> float:
    """Return the MiB that steps need at their peak, with weights and batch, in a new process.

    The memory of the libraries themselves, and of compiling, is not counted.
    """
    tiny = replace(
        config,
        model=replace(config.model, widths=(4, 8)),
        augment=replace(config.augment, crop=(32, 32)),
    )
    step, _ = make_step("bare step", precision, tiny, device)
    step()  # libraries allocate their own buffers once
    torch.compiler.reset()  # otherwise it would compile for images of any size from here on
    meter = MemoryMeter(device)
    step, _ = make_step(name, precision, config, device)
    for _ in range(2):
        step()
    meter.reset_peak()
    for _ in range(2):
        step()
    return meter.peak()


def compare_steps(
    config: Config, device: torch.device, precisions: Sequence[str], rounds: int, steps: int
) -> None:
    """Print a table of steps, and how much more time ours takes than the bare one."""
    crop, batch_size = config.augment.crop, config.train.batch_size
    assert crop is not None
    print(
        f"\n{device.type}: steps with a batch of {batch_size} x {config.model.in_channels} x "
        f"{crop[0]} x {crop[1]}, widths {', '.join(map(str, config.model.widths))}"
    )
    reasons = {name: reason_to_leave_out(name, config) for name in CANDIDATES}
    names = [name for name, reason in reasons.items() if reason is None]
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: left out, because {reason}")
    print(
        f"{'':21} {'ms: min':>9} {'median':>9} {'images/s':>9} {'of bare':>8} {'peak MiB':>9} "
        f"{'M parameters':>13}"
    )
    sentences = []
    for precision in precisions:
        torch.compiler.reset()
        candidates = {name: make_step(name, precision, config, device) for name in names}
        for step, _ in candidates.values():
            for _ in range(3):  # the first steps are slower
                step()
        runs = {name: step for name, (step, _) in candidates.items()}
        times = time_in_turns(runs, rounds, device, steps)
        parameters = {name: number for name, (_, number) in candidates.items()}
        del candidates, runs, step
        for name, one in times.items():
            memory = run_in_new_process(measure_memory, name, precision, config, device)
            ratio = statistics.median(one.ratios(times["bare step"]))
            print(
                f"{precision:10} {name:10} {1e3 * min(one.seconds):9.2f} {1e3 * one.median:9.2f} "
                f"{batch_size / one.median:9.1f} {ratio:8.3f} {memory:9.0f} "
                f"{parameters[name] / 1e6:13.3f}",
                flush=True,
            )
        sentences.append(
            f"{precision}: our step over the bare step "
            f"{times['our step'].overhead(times['bare step'])}; the goal is at most {GOAL} %"
        )
    print("\n".join([*sentences, *(NOTES[name] for name in names if name in NOTES)]))


def make_training_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options of the two benchmarks of training."""
    parser = make_parser(description)
    devices = list_devices()
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="changes to the config, such as 'model.widths=[16,32,64]'",
    )
    parser.add_argument("--devices", nargs="+", choices=devices, default=devices)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print a table for each device."""
    parser = make_training_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="(default: 20)")
    parser.add_argument(
        "--steps", type=int, help="steps of each candidate in a round (default: 2, on CUDA 30)"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="measure compiled steps too (default: yes, but not with --quick)",
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.settings = [*QUICK, *arguments.settings]
        arguments.rounds, arguments.steps = 2, 1
    config = load_config(ROOT / "configs" / "isbi2012.yaml", arguments.settings)
    if config.augment.crop is None:
        parser.error("augment.crop: got null, expected the size of the batch")
    compiled = not arguments.quick if arguments.compile is None else arguments.compile
    precisions = [name for name, (_, compiles) in PRECISIONS.items() if compiled or not compiles]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.devices:
        steps = arguments.steps or (30 if name == "cuda" else 2)
        compare_steps(config, torch.device(name), precisions, arguments.rounds, steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
