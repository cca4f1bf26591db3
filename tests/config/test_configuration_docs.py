import runpy
from pathlib import Path

from helpers import small_config

from unet.config.values import flat_settings

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_configuration_docs.py"))
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == script["configuration_page"](), "run scripts/write_configuration_docs.py"


def test_the_page_has_every_setting_and_is_short() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    config = small_config("loss.border={classes: [cell]}", "data.normalization=auto")
    paths = {path for path in flat_settings(config) if not path.startswith("data.classes.")}
    for path in {*paths, "data.classes", "data.normalization.mean", "data.normalization.std"}:
        assert f"\n| `{path}` | " in page, path
    assert len(page.splitlines()) <= 250  # a table of all settings
