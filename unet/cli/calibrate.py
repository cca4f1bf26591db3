"""The command that calibrates the probabilities of a model."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def run_calibrate(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Write a copy of a checkpoint with calibrated probabilities."""
    from unet.checkpoint import find_checkpoint
    from unet.evaluation.calibrate import calibrate

    path = find_checkpoint(arguments.checkpoint)
    out: Path = arguments.out or path.with_name(f"{path.stem}-calibrated.pt")
    found = calibrate(
        path,
        out,
        max_missed=arguments.max_missed,
        images=arguments.images,
        masks=arguments.masks,
        overrides=settings,
        overwrite=arguments.overwrite,
    )
    print(f"{found}\nwrote {out}")
