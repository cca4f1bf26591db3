"""One update of the weights."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from unet.models.blocks import centre_crop
from unet.models.network import Network
from unet.runtime import distributed

# GradScaler's initial scale of 2**16, halved 30 times.
_SMALLEST_SCALE = 2.0**-14


@dataclass(eq=False)
class TrainingStep:
    """Forward and backward pass over one or more batches, then the update, in all processes."""

    net: nn.Module  # on its device
    loss_function: nn.Module  # (logits, target, further tensors of a batch) -> scalar
    optimizer: torch.optim.Optimizer  # with the highest learning rate of each group
    dtype: torch.dtype = torch.float32  # for autocast; with float16 the loss is scaled
    accumulate: int = 1  # number of batches whose gradients are averaged
    clip_grad_norm: float | None = None  # largest norm of all gradients together
    compiled: bool = False  # whether to use torch.compile
    memory_format: torch.memory_format = torch.channels_last  # of the images
    freezes: bool = False  # whether some parameters have no gradient in some steps

    def __post_init__(self) -> None:
        self.parameters = list(self.net.parameters())
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self._highest_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._parallel = None
        if distributed.world_size() > 1:
            # Without find_unused_parameters it waits for the gradients of frozen parameters.
            self._parallel = DistributedDataParallel(self.net, find_unused_parameters=self.freezes)
        self._forward = self._parallel or self.net
        if self.compiled:
            # All crops have one size; torch's compiler cannot handle a dynamic one.
            self._forward = torch.compile(self._forward, dynamic=False)  # type: ignore[assignment]

    def gradients(self, batches: Iterable[Sequence[Tensor]]) -> tuple[float, float]:
        """Compute the gradients of the mean loss over `accumulate` batches.

        A batch holds images (N, C, H, W), targets (N, H, W), and further inputs of the loss.
        Returns the loss and the norm of all gradients before clipping.
        """
        self.net.train()
        self.optimizer.zero_grad()
        loss_sum = torch.zeros((), device=self.device)
        for i, (images, *targets) in enumerate(batches):
            images = images.to(self.device, memory_format=self.memory_format, non_blocking=True)
            targets = [target.to(self.device, non_blocking=True) for target in targets]
            # Processes exchange gradients only once, with the last batch.
            is_last = i == self.accumulate - 1
            with self._parallel.no_sync() if self._parallel and not is_last else nullcontext():
                with torch.autocast(
                    self.device.type, self.dtype, enabled=self.dtype != torch.float32
                ):
                    logits = self._forward(images)
                    # The logits of an unpadded network cover only the centre of a crop.
                    targets = [centre_crop(target, logits) for target in targets]
                    loss = self.loss_function(logits, *targets) / self.accumulate
                self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip_grad_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        loss_value, norm_value = torch.stack([loss_sum, norm]).tolist()  # the only synchronization
        return loss_value, norm_value

    @property
    def may_skip(self) -> bool:
        """Whether `update` skips gradients that are not finite, as float16 does to find its scale.

        After 30 skipped steps in a row the scale is not the reason, and the answer is False.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= _SMALLEST_SCALE

    def update(self, multiplier: float) -> None:
        """Update the weights with `multiplier` times the highest learning rates.

        In float16 the update is skipped if a gradient is not finite.
        """
        for group, highest in zip(self.optimizer.param_groups, self._highest_rates, strict=True):
            group["lr"] = highest * multiplier
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def check_moments(self, moments: Mapping[Any, Mapping[str, Tensor]], where: str) -> None:
        """Raise ValueError unless the optimizer can go on with these moments by parameter."""
        # A frozen encoder has none, and neither has a run whose steps were all skipped.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        names = {"step", "exp_avg", "exp_avg_sq"}
        if isinstance(self.optimizer, torch.optim.SGD):
            names = {"momentum_buffer"}
        for index, found in moments.items():
            if index not in range(len(parameters)) or found.keys() != names:
                raise ValueError(
                    f"{where}: optimizer: got {', '.join(map(str, found))} of parameter {index}, "
                    f"expected {', '.join(sorted(names))} of one of {len(parameters)} parameters"
                )
            shape = parameters[index].shape
            for name, one in found.items():
                if one.shape != (() if name == "step" else shape) or not one.is_floating_point():
                    raise ValueError(
                        f"{where}: optimizer: {name} of parameter {index} does not have the shape "
                        "and type of the parameter"
                    )


class WeightAverage:
    """An exponential moving average of a network's weights and buffers.

    Each update keeps the fraction `decay` of the average; the first updates keep less.
    """

    def __init__(self, net: Network, decay: float) -> None:
        self.net: Network = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Add the weights after a step, counted from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for averaged, now in zip(
            self.net.state_dict().values(), net.state_dict().values(), strict=True
        ):
            if averaged.is_floating_point():
                averaged.lerp_(now, 1 - keep)
            else:
                averaged.copy_(now)
