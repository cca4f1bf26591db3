"""Losses on logits (N, K, H, W) and a target (N, H, W) of class ids, int64.

Under torchrun every process computes the loss of all processes' samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.runtime.distributed import all_reduce_sum_with_gradient


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    border_weights: Tensor | None = None,
) -> Tensor:
    """Compute the weighted mean of the cross-entropy over all pixels that are not ignored.

    The weight of a pixel is its class's (default 1) plus its border_weights (N, H, W). The loss is
    0 if all pixels are ignored; torch's is NaN.

    Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, equations 1 and 2, with a weighted
    mean instead of the sum.
    """
    # Not with torch's reduction: on CUDA the order of its sum changes from run to run.
    losses = F.cross_entropy(logits.float(), target, ignore_index=ignore_index, reduction="none")
    counted = target != ignore_index
    weights = counted.float()
    if class_weights is not None:
        weights = class_weights[target.where(counted, 0)] * weights
    if border_weights is not None:
        weights = weights + border_weights.where(counted, 0)
    sums = all_reduce_sum_with_gradient(torch.stack([(weights * losses).sum(), weights.sum()]))
    return sums[0] / sums[1].clamp(min=torch.finfo(torch.float32).tiny)


def dice_loss(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Compute 1 - soft Dice, summed over the batch, averaged over the classes in the target.

    Classes absent from the whole target are left out of the mean. The loss is 0 if all pixels are
    ignored.

    Source: Milletari, Navab and Ahmadi 2016, arXiv 1606.04797, section 3, without squares in the
    denominator.
    """
    counted = (target != ignore_index).unsqueeze(1)
    probabilities = logits.float().softmax(dim=1) * counted
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = (target.unsqueeze(-1) == classes).movedim(-1, 1) * counted
    maps = (probabilities * truth, probabilities, truth)
    sums = all_reduce_sum_with_gradient(torch.stack([one.sum((0, 2, 3)) for one in maps]))
    common, predicted, present = sums[0], sums[1], sums[2]
    dice = 2 * common / (predicted + present).clamp(min=1e-6)
    weights = (present > 0).float()
    if class_weights is not None:
        weights = weights * class_weights
    return ((1 - dice) * weights).sum() / weights.sum().clamp(min=1e-6)


class SegmentationLoss(nn.Module):
    """The weighted sum of cross-entropy and soft Dice loss.

    Args:
        cross_entropy: weight of the cross-entropy.
        dice: weight of the Dice loss.
        class_weights: one number for each class; None for equal weights.
        ignore_index: class id of the pixels to leave out.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        cross_entropy: float = 1.0,
        dice: float = 1.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy
        self.dice = dice
        self.ignore_index = ignore_index
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights)

    def forward(
        self, logits: Tensor, target: Tensor, border_weights: Tensor | None = None
    ) -> Tensor:
        """Logits (N, K, H, W), target and border weights (N, H, W) -> a float32 scalar."""
        arguments = logits, target, self.class_weights, self.ignore_index
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * cross_entropy(*arguments, border_weights)
        if self.dice:
            loss = loss + self.dice * dice_loss(*arguments)
        return loss
