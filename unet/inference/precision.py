"""The dtype in which a trained model computes."""

import torch

from unet.build import memory_format
from unet.config.schema import Config
from unet.models.network import Network
from unet.runtime.device import pick_dtype, time_dtypes


def pick_inference_dtype(
    net: Network, config: Config, device: torch.device, is_given: bool
) -> torch.dtype:
    """Return the dtype of the training, or float32 on a CPU that is twice as slow with the former.

    If `is_given`, an override of `train.precision` decides.
    """
    dtype = pick_dtype(config.train.precision, device)
    if is_given or device.type != "cpu" or dtype == torch.float32:
        return dtype

    @torch.inference_mode()
    def run(dtype: torch.dtype, side: int) -> None:
        side = net.geometry.input_side(side)
        image = torch.zeros(1, net.in_channels, side, side).to(memory_format=memory_format(config))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            net.eval()(image)

    times = time_dtypes(run, dtype, 256)
    return torch.float32 if times and times[dtype] > 2 * times[torch.float32] else dtype
