"""Layers of a network that only predicts, rewritten for speed: the logits stay the same."""

import copy
from collections import Counter
from itertools import pairwise

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet.models.conv_transpose import ConvTranspose2d
from unet.models.custom import CustomNetwork
from unet.models.network import Network
from unet.models.timm_backbone import TimmBackbone


def fuse_batch_norm(net: Network) -> Network:
    """Copy a network for prediction and fuse each batch norm into the convolution before it.

    The logits stay the same up to rounding. Other norms depend on the image and stay. A custom
    network, or one of timm that cannot be traced, is only copied: its modules need not be called in
    their order.
    """
    fused = copy.deepcopy(net).eval().requires_grad_(False)
    if isinstance(fused, CustomNetwork):
        return fused
    _fuse(fused)
    return fused


def _fuse(module: nn.Module) -> None:
    if isinstance(module, TimmBackbone):
        try:
            module.net = fx.GraphModule(module.net, _Tracer().trace(module.net))
        except Exception:  # of the network's own checks, whatever the type
            return
        _fuse_graph(module.net)
        return
    if isinstance(module, fx.GraphModule):
        _fuse_graph(module)
    elif isinstance(module, nn.Sequential):
        _fuse_sequence(module)
    for child in module.children():
        _fuse(child)


class _Tracer(fx.Tracer):
    """Keeps a batch norm whole that computes an activation, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_norm = isinstance(m, nn.BatchNorm2d)
        return is_norm or super().is_leaf_module(m, module_qualified_name)


def _fuse_sequence(layers: nn.Sequential) -> None:
    for i, (conv, norm) in enumerate(pairwise([*layers])):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[i], layers[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def _fuse_graph(graph_module: fx.GraphModule) -> None:
    """Fuse each batch norm that is the only user of a convolution."""
    modules = dict(graph_module.named_modules())
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    num_calls = Counter(node.target for node in calls)
    for node in calls:
        before, norm = node.args[0], modules[node.target]
        conv = modules.get(before.target) if before in calls else None
        if (
            isinstance(norm, nn.BatchNorm2d)
            and type(conv) is nn.Conv2d  # others compute their weights
            and len(before.users) == num_calls[before.target] == num_calls[node.target] == 1
        ):
            graph_module.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            # A batch norm of timm may contain an activation.
            graph_module.set_submodule(node.target, getattr(norm, "act", nn.Identity()))


def shuffle_pixels(net: Network) -> None:
    """Replace each transposed convolution by the 1 x 1 convolution and pixel shuffle that it is.

    Exported like this, both can be quantized.
    """
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, ConvTranspose2d):
                setattr(module, name, _shuffled(layer))


def _shuffled(layer: ConvTranspose2d) -> nn.Sequential:
    stride, channels = layer.stride[0], layer.in_channels
    assert layer.kernel_size == layer.stride == (stride, stride)  # blocks do not overlap
    assert layer.groups == 1
    assert layer.bias is not None
    conv = nn.Conv2d(channels, layer.out_channels * stride**2, 1)
    # (C, K, kH, kW) -> (K * kH * kW, C, 1, 1)
    conv.weight = nn.Parameter(layer.weight.detach().flatten(1).t()[..., None, None].contiguous())
    conv.bias = nn.Parameter(layer.bias.detach().repeat_interleave(stride**2))
    return nn.Sequential(conv, nn.PixelShuffle(stride)).to(layer.weight.device)
