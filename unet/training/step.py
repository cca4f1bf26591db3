"""One update of the weights."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from unet.models.blocks import centre_crop
from unet.models.unet import UNet
from unet.runtime import distributed

# The scale that float16 begins with, 2**16, halved 30 times.
_SMALLEST_SCALE = 2.0**-14


class TrainingStep:
    """Forward, loss and backward over some batches, then the update; in all processes alike.

    Args:
        net: to train, on its device.
        loss_function: (logits, targets, and what else is in a batch) -> scalar.
        optimizer: of the net's weights, made with the highest learning rates.
        dtype: to compute in; float16 scales the loss so that small gradients are not lost.
        accumulate: batches whose gradients are averaged.
        clip_grad_norm: longer gradients are shortened to it; None for never.
        compiled: whether torch.compile makes one program of the net.
        memory_format: of the images.
        freezes: whether part of the net has no gradient in some steps.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_function: nn.Module,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype = torch.float32,
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
        compiled: bool = False,
        memory_format: torch.memory_format = torch.channels_last,
        freezes: bool = False,
    ) -> None:
        self.device = next(net.parameters()).device
        self.parameters = list(net.parameters())
        self.loss_function = loss_function
        self.optimizer = optimizer
        self.dtype = dtype
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.memory_format = memory_format
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self._net = net
        # The highest learning rate of each group.
        self._highest = [float(group["lr"]) for group in optimizer.param_groups]
        self._parallel = None
        if distributed.world_size() > 1:
            # Or it waits for gradients that do not come.
            self._parallel = DistributedDataParallel(net, find_unused_parameters=freezes)
        self._forward = self._parallel or net
        if compiled:
            # Crops have one size; a size that may change is more than torch's compiler can do.
            self._forward = torch.compile(self._forward, dynamic=False)  # type: ignore[assignment]

    def gradients(self, batches: Iterable[Sequence[Tensor]]) -> tuple[float, float]:
        """Compute the gradients of the mean loss over `accumulate` batches.

        Args:
            batches: images (N, C, H, W), targets (N, H, W) and what else the loss takes.

        Returns:
            The loss, and the norm of all gradients together (before they are clipped).
        """
        self._net.train()
        self.optimizer.zero_grad()
        loss_sum = torch.zeros((), device=self.device)
        for i, (images, *targets) in enumerate(batches):
            images = images.to(self.device, memory_format=self.memory_format, non_blocking=True)
            targets = [target.to(self.device, non_blocking=True) for target in targets]
            is_last = i == self.accumulate - 1
            # Gradients are exchanged once, with the last batch.
            unsynchronized = self._parallel is not None and not is_last
            with self._parallel.no_sync() if self._parallel and unsynchronized else nullcontext():
                with torch.autocast(
                    self.device.type, self.dtype, enabled=self.dtype != torch.float32
                ):
                    logits = self._forward(images)
                    # An unpadded network's are those of the middle; the rest was their context.
                    targets = [centre_crop(target, logits) for target in targets]
                    loss = self.loss_function(logits, *targets) / self.accumulate
                self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip_grad_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        loss_value, norm_value = torch.stack([loss_sum, norm]).tolist()  # waits for the device once
        return loss_value, norm_value

    @property
    def may_skip(self) -> bool:
        """Whether an update by gradients that are no finite numbers is left out, as float16 does.

        Not for ever: after 30 in a row it is not for the scale of the loss that they are not.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= _SMALLEST_SCALE

    def update(self, factor: float) -> None:
        """Change the weights; in float16 only if all gradients are finite numbers.

        Args:
            factor: of the learning rates that the optimizer was made with.
        """
        for group, highest in zip(self.optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()


class WeightAverage:
    """An exponential moving average of a network's weights and buffers.

    Args:
        net: the network.
        decay: what each update keeps of the average; less in the first ones.
    """

    def __init__(self, net: UNet, decay: float) -> None:
        self.net: UNet = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after the update number `step`, from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for averaged, now in zip(
            self.net.state_dict().values(), net.state_dict().values(), strict=True
        ):
            if averaged.is_floating_point():
                averaged.lerp_(now, 1 - keep)
            else:
                averaged.copy_(now)
