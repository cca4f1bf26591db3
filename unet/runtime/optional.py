"""Packages that only some people need."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Distribution and extra of packages whose names differ from theirs.
_DISTRIBUTIONS = {"skimage": "scikit-image"}
_EXTRAS = {"scipy": "metrics", "skimage": "metrics"}


def is_installed(package: str) -> bool:
    """Whether there is such a package; for what can be left out and said to be."""
    return find_spec(package) is not None


def import_extra(module: str, what: str, name: str | None = None) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: such as `scipy.ndimage`.
        what: that needs it, for the message.
        name: of the extra; None for the usual one of the package.

    Raises:
        ValueError: if the package is not installed.
    """
    package = module.partition(".")[0]
    if not is_installed(package):
        raise ValueError(
            f"{what}: needs {_DISTRIBUTIONS.get(package, package)}; install it with "
            f"pip install 'unet[{name or _EXTRAS.get(package, package)}]'"
        )
    return import_module(module)
