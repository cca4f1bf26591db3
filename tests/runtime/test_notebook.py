from typing import Any

import pytest
from PIL import Image

from unet.runtime import notebook


def test_a_picture_replaces_the_last_one_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda _, **options: calls.append(options))
    for key in ("a", "b", "a"):
        notebook.show_picture(Image.new("L", (2, 2)), key)
    assert calls == [
        {"display_id": "a", "update": False},
        {"display_id": "b", "update": False},
        {"display_id": "a", "update": True},
    ]
