import math

import pytest

from unet.runtime import optional as extras
from unet.runtime.optional import import_extra, is_installed


def test_an_installed_module_is_imported() -> None:
    assert import_extra("math", "a sum") is math
    assert is_installed("math")


def test_a_missing_package_raises_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError,
        match=r"^boundary F1: needs scipy; install it with pip install 'unet\[metrics\]'$",
    ):
        import_extra("scipy.ndimage", "boundary F1")
    assert not is_installed("scipy")
    with pytest.raises(ValueError, match=r"^objects: needs scikit-image; .* 'unet\[metrics\]'$"):
        import_extra("skimage.measure", "objects")
    with pytest.raises(ValueError, match=r"needs onnxruntime; install it .* 'unet\[onnx\]'$"):
        import_extra("onnxruntime", "model.onnx", "onnx")
