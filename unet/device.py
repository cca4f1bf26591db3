"""Which device, and which precision it gains from."""

import torch


def pick_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda or cuda:N into a device that is there; auto prefers CUDA.

    Raises:
        ValueError: if torch does not know the device or sees none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"train.device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"train.device: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA "
            "device(s); take auto or cpu"
        )
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Turn a precision into the dtype to compute in; auto takes what the device gains from.

    CPUs gain from none of the short ones here: measured, bfloat16 is slower than float32.
    """
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16
