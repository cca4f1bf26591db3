import runpy
import subprocess
import sys
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


def test_a_script_shows_its_help_and_writes_nothing(tmp_path: Path) -> None:
    for name in ("write_configuration_docs.py", "draw_conv_transpose.py"):
        command = [sys.executable, str(ROOT / "scripts" / name), "--help"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"usage: {name}")
        assert "wrote" not in result.stdout
