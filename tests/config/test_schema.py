import dataclasses
import inspect
import subprocess
import sys

import pytest
from helpers import small_config

from unet.config.data_schema import AugmentConfig
from unet.config.schema import (
    BorderConfig,
    LossConfig,
    ModelConfig,
    tile_overlap,
    tiles_blend,
    warmup_epochs,
)
from unet.data.augmentation import Augmentation
from unet.data.border_weights import Border
from unet.models.losses import SegmentationLoss
from unet.models.unet import UNet


def test_reading_a_config_does_not_import_torch() -> None:
    code = "import sys, unet.config.loader; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tiles_overlap_by_twice_the_margin_unless_set() -> None:
    assert tile_overlap(small_config()) == 192
    assert tile_overlap(small_config("model.widths=[8, 16, 32, 64]")) == 96
    assert tile_overlap(small_config("tiling.overlap=10")) == 10
    assert small_config("tiling.size=[208, 300]").tiling.size == (208, 300)


@pytest.mark.parametrize(
    ("section", "component", "other_names"),
    [
        (AugmentConfig, Augmentation, {"context", "size_multiple", "size_remainder"}),
        # From data.classes and train.
        (ModelConfig, UNet, {"num_classes", "activation_checkpointing"}),
        # ignore_index is not a setting, border weights come with the data.
        (LossConfig, SegmentationLoss, {"ignore_index", "border"}),
        (BorderConfig, Border, set()),
    ],
)
def test_settings_have_the_names_and_defaults_of_the_arguments_they_become(
    section: type, component: type, other_names: set[str]
) -> None:
    parameters = inspect.signature(component).parameters
    fields = {field.name: field for field in dataclasses.fields(section)}
    assert fields.keys() ^ parameters.keys() == other_names
    for name in fields.keys() - other_names:
        assert fields[name].default == parameters[name].default


@pytest.mark.parametrize(
    ("epochs", "warmup", "effective"),
    [(1, 1, 0.1), (5, 7.5, 0.5), (5, 4.5, 4.5), (3, 2, 2), (1, 0, 0), (1, 0.5, 0.5)],
)
def test_a_warm_up_that_is_not_shorter_than_the_training_is_shortened(
    epochs: int, warmup: float, effective: float
) -> None:
    config = small_config(f"train.epochs={epochs}", f"schedule.warmup_epochs={warmup}")
    assert warmup_epochs(config) == effective


def test_tiles_blend_unless_their_overlap_makes_them_exact() -> None:
    def tiles(encoder: str, *overrides: str) -> tuple[int, bool]:
        config = small_config(f"model.encoder={encoder}", *overrides)
        return tile_overlap(config), tiles_blend(config)

    assert tiles("none") == (192, False)
    assert tiles("resnet50") == (256, True)
    assert tiles("resnet50", "tiling.overlap=576") == (576, False)
    assert tiles("resnet50", "tiling.overlap=575") == (575, True)
    assert tiles("efficientnet_b0", "tiling.overlap=576") == (576, True)
    assert tiles("none", "tiling.overlap=9") == (9, False)
    assert tiles("none", "model.norm=group") == (192, True)
    assert tiles("resnet50", "model.norm=group", "tiling.overlap=576") == (576, True)
    assert tiles("none", "model.padding=valid") == (4, False)
    assert tiles("none", "model.padding=valid", "model.norm=group") == (192, True)
