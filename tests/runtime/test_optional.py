import math
import tomllib
from pathlib import Path

import pytest

from unet.runtime import optional as extras
from unet.runtime.optional import (
    DISTRIBUTION,
    import_extra,
    install_command,
    is_installed,
    quickstart_config,
)


def test_an_installed_module_is_imported() -> None:
    assert import_extra("math", "a sum") is math
    assert is_installed("math")


def test_a_missing_package_raises_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError,
        match=r"^boundary F1: needs scipy; install it with pip install -e \".*\[metrics\]\"$",
    ):
        import_extra("scipy.ndimage", "boundary F1")
    assert not is_installed("scipy")
    with pytest.raises(ValueError, match=r"^objects: needs scikit-image; .*\[metrics\]\"$"):
        import_extra("skimage.measure", "objects")
    with pytest.raises(ValueError, match=r"needs onnxruntime; install it .*\[onnx\]\"$"):
        import_extra("onnxruntime", "model.onnx", "onnx")


def test_an_extra_is_installed_in_the_clone_or_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = Path(extras.__file__).parents[2]
    monkeypatch.chdir(clone)
    assert install_command("tiff") == 'pip install -e ".[tiff]"'
    monkeypatch.chdir(tmp_path)
    assert install_command("tiff") == f'pip install -e "{clone}[tiff]"'
    assert quickstart_config() == clone / "configs" / "quickstart.yaml"
    monkeypatch.setattr(extras, "_PARENT", tmp_path)  # as in site-packages
    assert install_command("tiff") == 'pip install "unet-segmentation[tiff]"'
    assert install_command() == 'pip install "unet-segmentation"'


def test_the_extras_of_messages_exist_and_all_has_those_that_are_no_tools() -> None:
    text = (Path(extras.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    optional = project["optional-dependencies"]
    assert project["name"] == DISTRIBUTION
    assert set(extras._EXTRAS.values()) <= set(optional)
    names = optional["all"][0].removeprefix(f"{DISTRIBUTION}[").removesuffix("]").split(",")
    assert set(names) == set(optional) - {"all", "bench", "dev"}
