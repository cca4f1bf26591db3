"""Losses on logits (N, K, H, W) and a target (N, H, W) of class ids, int64.

Under torchrun a loss is that of the samples of all processes together, in each of them.
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
    """Return the weighted mean of the cross-entropy over the pixels that count.

    A pixel weighs what its class does, or 1, and border_weights (N, H, W) besides. 0 when no pixel
    counts (torch's own mean is NaN then).

    Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, equations 1 and 2; they sum where
    this is a mean, whose size does not depend on the weights.
    """
    # Summed here: torch's own sum is in another order each time on CUDA.
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
    """Return 1 - soft Dice, pooled over the batch, averaged over the classes in the target.

    A class absent from the whole target has no Dice to improve and is left out of the mean;
    0 when no pixel counts.

    Source: Milletari, Navab and Ahmadi 2016, arXiv 1606.04797, equation in section 3, with the
    sums instead of the squares in the denominator.
    """
    counted = (target != ignore_index).unsqueeze(1)
    probabilities = logits.float().softmax(dim=1) * counted
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = (target.unsqueeze(-1) == classes).movedim(-1, 1) * counted
    pixels = (0, 2, 3)
    sums = all_reduce_sum_with_gradient(
        torch.stack([part.sum(pixels) for part in (probabilities * truth, probabilities, truth)])
    )
    common, predicted, present = sums[0], sums[1], sums[2]
    dice = 2 * common / (predicted + present).clamp(min=1e-6)
    weights = (present > 0).float()
    if class_weights is not None:
        weights = weights * class_weights
    return ((1 - dice) * weights).sum() / weights.sum().clamp(min=1e-6)


class SegmentationLoss(nn.Module):
    """The weighted sum of cross-entropy and soft Dice loss.

    Args:
        cross_entropy: factor of the cross-entropy; 0 leaves it out.
        dice: factor of the Dice loss; 0 leaves it out.
        class_weights: one number for each class; None for all equal.
        ignore_index: the class id whose pixels do not count.
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
        """Logits (N, K, H, W) and target (N, H, W) -> a float32 scalar.

        Weights (N, H, W) of the pixels beside those of the classes count in the cross-entropy.
        """
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * cross_entropy(
                logits, target, self.class_weights, self.ignore_index, border_weights
            )
        if self.dice:
            loss = loss + self.dice * dice_loss(
                logits, target, self.class_weights, self.ignore_index
            )
        return loss
