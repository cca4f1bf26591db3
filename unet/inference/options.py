"""The options of a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from unet.inference.predictor import Model
from unet.inference.tta import TtaMode, list_views
from unet.runtime.optional import import_extra

PolygonFormat = Literal["geojson", "coco", "labelme"]

_NEED_OBJECTS = ("min_size", "keep_largest", "instances")


class OptionError(ValueError):
    """An option is out of range, or does not fit the model or an image."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are predicted, and what is written in addition to the masks.

    Args:
        tta: modes of test-time augmentation, see `list_views`.
        threshold: of two classes, choose the second where its probability is at least this.
        min_size: remove objects with fewer pixels, see `clean`.
        keep_largest: keep only the largest object of each class.
        overlay: write overlays/NAME.png, the contours of the mask over the image; with `instances`,
            each object has a colour of its own.
        probabilities: write probabilities/NAME.tif, a float32 page for each class.
        instances: write instances/NAME.tif, 32-bit integers, see `number_objects`.
        polygons: write the outlines of objects as polygons/NAME.geojson, as polygons/NAME.json of
            labelme, or all as polygons/coco.json; None for none.
        windows: whether to read TIFFs window by window, see `is_raster`.

    Raises:
        OptionError: if a value has a wrong type or is out of range.
        ValueError: if `tta` has an unknown mode.
    """

    tta: Sequence[TtaMode] = ()
    threshold: float | None = None
    min_size: int = 0
    keep_largest: bool = False
    overlay: bool = False
    probabilities: bool = False
    instances: bool = False
    polygons: PolygonFormat | None = None
    windows: bool | None = None

    def __post_init__(self) -> None:
        list_views(self.tta)
        threshold, min_size = self.threshold, self.min_size
        if threshold is not None and not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise OptionError("threshold", f"got {_show(threshold)}, expected 0 to 1")
        if not isinstance(min_size, Integral) or min_size < 0:
            raise OptionError("min_size", f"got {_show(min_size)}, expected 0 pixels or more")
        if self.polygons not in (None, *get_args(PolygonFormat)):
            known = ", ".join(get_args(PolygonFormat))
            raise OptionError("polygons", f"got {self.polygons!r}, expected one of {known}")
        for name in ("keep_largest", "overlay", "probabilities", "instances", "windows"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "windows" and value is None):
                raise OptionError(name, f"got {value!r}, expected True or False")

    def check_model(self, model: Model) -> None:
        """Raise `OptionError` if an option does not fit a model, ValueError without its package."""
        num_classes = len(model.classes.names)
        if self.threshold is not None and num_classes != 2:
            raise OptionError(
                "threshold",
                f"got a model of {num_classes} classes, expected one of two; leave it out to "
                "choose the most probable class",
            )
        for name in _NEED_OBJECTS:
            if getattr(self, name):
                import_extra("skimage.measure", name)
        if self.polygons is not None:
            import_extra("rasterio", "polygons")

    def check_windows(self, path: str) -> None:
        """Raise `OptionError` if an option needs the whole of an image that is read in windows."""
        for name in (*_NEED_OBJECTS, "overlay"):
            if getattr(self, name):
                raise OptionError(
                    name,
                    f"got {path}, a raster that is read in windows, expected images that are read "
                    "whole; leave it out, or turn windows off to read the raster whole, without "
                    "georeference, if memory suffices",
                )


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
