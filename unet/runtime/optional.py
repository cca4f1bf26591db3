"""How this package is installed, and packages of extras, which only some users install."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

DISTRIBUTION = "unet-segmentation"  # on the package index, unet is another project

_PARENT = Path(__file__).parents[2]  # a clone, or the folder of all installed packages

# Distribution and extra of the packages whose names differ from theirs.
_DISTRIBUTIONS = {"skimage": "scikit-image"}
_EXTRAS = {
    "imagecodecs": "tiff",
    "matplotlib": "plots",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pycocotools": "annotations",
    "rasterio": "tiff",
    "roifile": "annotations",
    "scipy": "metrics",
    "skimage": "metrics",
    "tifffile": "tiff",
}


def unet_version() -> str:
    """Return the version of this package."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"


def install_command(extra: str = "") -> str:
    """Return the command that installs an extra: in this clone, or from a package index."""
    extra = f"[{extra}]" if extra else ""
    if not (_PARENT / "pyproject.toml").is_file():
        return f'pip install "{DISTRIBUTION}{extra}"'
    clone = "." if Path.cwd() == _PARENT else _PARENT
    return f'pip install -e "{clone}{extra}"'


def quickstart_config() -> Path:
    """Return the config of the quickstart, which an installed package contains, too."""
    installed = _PARENT / "unet" / "quickstart.yaml"
    return installed if installed.exists() else _PARENT / "configs" / "quickstart.yaml"


def is_installed(*packages: str) -> bool:
    """Whether all packages can be imported."""
    return all(find_spec(package) is not None for package in packages)


def import_extra(module: str, feature: str, extra: str | None = None) -> ModuleType:
    """Import a module, such as `scipy.ndimage`, for a feature; None is the package's usual extra.

    Raises:
        ValueError: if the package is not installed; the message names the feature and the extra.
    """
    package = module.partition(".")[0]
    if not is_installed(package):
        raise ValueError(
            f"{feature}: needs {_DISTRIBUTIONS.get(package, package)}; install it with "
            f"{install_command(extra or _EXTRAS.get(package, package))}"
        )
    return import_module(module)
