import math

import pytest

from unet import extras
from unet.extras import extra


def test_a_module_of_an_extra_is_imported() -> None:
    assert extra("math", "a sum") is math


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r"^boundary F1: needs scipy; install it with pip install 'unet\[scipy\]'$"
    ):
        extra("scipy.ndimage", "boundary F1")
    with pytest.raises(ValueError, match=r"needs onnxruntime; install it .* 'unet\[onnx\]'$"):
        extra("onnxruntime", "model.onnx", "onnx")
