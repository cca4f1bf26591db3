"""The options of a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from unet.checkpoint import Promise
from unet.inference.jobs import FOLDERS
from unet.inference.predictor import Model
from unet.inference.tta import TtaMode, list_views
from unet.runtime.optional import import_extra

PolygonFormat = Literal["geojson", "coco", "labelme", "imagej"]

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
        promise: the class whose promised threshold of a calibrated model is used; None for the
            second of two classes, if it has one.
        min_size: remove objects with fewer pixels, see `clean`.
        keep_largest: keep only the largest object of each class.
        overlay: write overlays/NAME.png, the contours of the mask over the image; with `instances`,
            each object has a colour of its own.
        probabilities: write probabilities/NAME.tif, a float32 page for each class.
        instances: write instances/NAME.tif, 32-bit integers, see `number_objects`.
        uncertainty: write uncertainty/NAME.png, the entropy of each pixel over the image, and
            uncertain.csv, the means of all images, see `predict_uncertainty`.
        polygons: write the outlines of objects as polygons/NAME.geojson, as polygons/NAME.json of
            labelme, as polygons/NAME.zip of ImageJ, or all as polygons/coco.json; None for none.
        windows: whether to read TIFFs window by window, see `is_raster`.

    Raises:
        OptionError: if a value has a wrong type or is out of range.
        ValueError: if `tta` has an unknown mode.
    """

    tta: Sequence[TtaMode] = ()
    threshold: float | None = None
    promise: str | None = None
    min_size: int = 0
    keep_largest: bool = False
    overlay: bool = False
    probabilities: bool = False
    instances: bool = False
    uncertainty: bool = False
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
        for name in ("keep_largest", *FOLDERS, "windows"):
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
        self.find_promise(model)
        for name in _NEED_OBJECTS:
            if getattr(self, name):
                import_extra("skimage.measure", name)
        if self.polygons is not None:
            import_extra("rasterio", "polygons")
        if self.polygons == "imagej":
            import_extra("roifile", "polygons")

    def find_promise(self, model: Model) -> Promise | None:
        """Return the promise that the masks keep; None if there is none, or with a threshold.

        Raises:
            OptionError: if another option or other models would break it, or there is none for
                the class `promise`.
        """
        names, found = model.classes.names, list[Promise]()
        for member in model.members:
            found += () if member.calibration is None else member.calibration.promises
        name = names[1] if self.promise is None and len(names) == 2 else self.promise
        of_class = [one for one in found if names[one.class_id] == name]
        if self.promise is not None and (not of_class or self.threshold is not None):
            known = ", ".join(names[one.class_id] for one in found) or "none"
            raise OptionError(
                "promise",
                f"got {self.promise!r}, expected a class with a promise of 'unet calibrate' "
                f"({known}), and no threshold",
            )
        if not of_class or self.threshold is not None:
            return None
        breaking = [one for one in ("tta", "min_size", "keep_largest") if getattr(self, one)]
        breaking += ["other models"] if len(model.members) > 1 else []
        if breaking:
            raise OptionError(
                "promise",
                f"got {breaking[0]} with a model that promises to miss few pixels of {name}, which "
                "would not hold; leave it out, or choose a threshold, such as 0.5",
            )
        return of_class[0]

    def find_threshold(self, model: Model) -> tuple[float | None, int]:
        """Return the threshold of a class and its id; None to choose the most probable class."""
        promise = self.find_promise(model)
        return (self.threshold, 1) if promise is None else (promise.threshold, promise.class_id)

    def check_windows(self, path: str) -> None:
        """Raise `OptionError` if an option needs the whole of an image that is read in windows."""
        for name in (*_NEED_OBJECTS, "overlay", "uncertainty"):
            if getattr(self, name):
                raise OptionError(
                    name,
                    f"got {path}, a raster that is read in windows, expected images that are read "
                    "whole; leave it out, or turn windows off to read the raster whole, without "
                    "georeference, if memory suffices",
                )


def describe_promise(model: Model, promise: Promise) -> str:
    """Say what a model promises about a class."""
    calibration, name = model.members[0].calibration, model.classes.names[promise.class_id]
    assert calibration is not None
    assert calibration.max_missed is not None
    return (
        f"{name} where its probability is at least {promise.threshold:g}: in 95 % of images like "
        f"the {promise.images} that this was calibrated on, at most {calibration.max_missed:.4g} "
        "of its pixels are missed"
    )


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
