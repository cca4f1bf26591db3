"""Batch norm folded into the convolutions, as a network that only predicts needs none."""

import copy
from collections import Counter
from itertools import pairwise

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet.models.unet import UNet


def fuse_batch_norm(net: UNet) -> UNet:
    """Copy a network for prediction, each batch norm folded into the convolution before it.

    What it computes stays the same to rounding. Other norms, which depend on the image, stay.
    """
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    for block in [part for part in folded.modules() if isinstance(part, nn.Sequential)]:
        for i, (conv, norm) in enumerate(pairwise([*block])):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    if isinstance(folded.encoder, fx.GraphModule):
        _fold_graph(folded.encoder)
    return folded


def _fold_graph(net: fx.GraphModule) -> None:
    """Fold each batch norm that a convolution alone feeds, and nothing else sees."""
    parts = dict(net.named_modules())
    calls = [node for node in net.graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        before, norm = node.args[0], parts[node.target]
        conv = parts.get(before.target) if before in calls else None
        if (
            isinstance(norm, nn.BatchNorm2d)
            and isinstance(conv, nn.Conv2d)
            and len(before.users) == times[before.target] == times[node.target] == 1
        ):
            net.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            net.set_submodule(node.target, nn.Identity())
