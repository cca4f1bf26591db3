"""What the documents say holds."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import make_config

import unet
from unet.cli.arguments import parse
from unet.config.loader import config_from_dict
from unet.training.train import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATASETS = ROOT.parent / "shared" / "datasets"
MODULES = {path.stem: path for path in (ROOT / "unet").glob("*.py") if path.stem[0] != "_"}


def test_modules_import_only_from_those_above_them_in_the_readme() -> None:
    listing = re.search(r"\n    unet/\n((?:      .*\n)+)", README)
    assert listing is not None
    order = re.findall(r"^      (\w+)\.py ", listing.group(1), re.MULTILINE)
    assert sorted(order) == sorted(MODULES)
    for i, name in enumerate(order):
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "unet" for alias in node.names), name
            if isinstance(node, ast.ImportFrom):
                package, _, imported = (node.module or "").partition(".")
                assert node.level == 0, name
                if package == "unet":
                    for module in [imported] if imported else [alias.name for alias in node.names]:
                        assert module in order[:i], f"{name} imports {module}"


def test_torchs_own_transposed_convolution_is_never_called() -> None:
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert "transpose2d" not in node.attr.lower(), path
                assert "transpose3d" not in node.attr.lower(), path
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                assert not any("ranspose" in alias.name for alias in node.names), path


def test_the_readmes_unet_commands_parse() -> None:
    commands = re.findall(r"^(?:\$ )?unet (.*)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        parse(shlex.split(command, comments=True))


def test_files_that_the_readme_links_to_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_public_name_is_there_and_documented() -> None:
    for name in unet.__all__:
        assert getattr(unet, name).__doc__, name
    assert set(unet._MODULES) == set(unet.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = unet.nonsense


def test_the_changelog_has_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {project['version']}" in changelog


def test_every_module_has_its_tests() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert set(MODULES) <= tests


def test_the_readme_names_every_script() -> None:
    listing = re.search(r"\n    scripts/ (.*\n(?:          .*\n)+)", README)
    assert listing is not None
    scripts = {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert scripts - set(re.findall(r"\w+\.py", listing.group(1))) == {
        *("train.py", "evaluate.py", "predict.py")  # "the three commands as scripts"
    }


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("benchmark_conv_transpose.py --repeats 1", "times as fast as torch's in the geometric"),
        ("benchmark_step.py --quick", "float32: our step over the bare step"),
        ("benchmark_training.py --quick", "our loop over the plain loop"),
        pytest.param(
            f"benchmark_data.py --data '{DATASETS}' --repeats 1",
            "times as fast as the plain loop",
            marks=pytest.mark.skipif(not DATASETS.exists(), reason=f"there is no {DATASETS}"),
        ),
        ("kill_and_resume.py --kills 1", "1 of 1: same weights"),
    ],
)
def test_the_scripts_that_the_readme_tells_of_run(command: str, shown: str) -> None:
    script, *arguments = shlex.split(command)
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert shown in result.stdout


def test_the_benchmark_of_prediction_runs() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark_predict.py", "--quick", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("ours  ")]
    assert [row[1] for row in rows] == ["16", "0"] * 2  # two sizes of tiles
    assert [row[5] for row in rows] == ["1.562", "1.000", "1.266", "1.000"]  # what is computed
    assert all(float(cell) > 0 for row in rows for cell in row[2:5])
    left_out = "monai: left out, as it cannot be imported" in result.stdout
    assert left_out != ("ours over monai" in result.stdout)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_config_loads() -> None:
    for block in code_blocks("yaml"):
        config_from_dict({"name": "mine", **yaml.safe_load(block)})


def test_the_readmes_python_runs(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(make_config(data_root, "name=quickstart", "train.epochs=1"))
    data_root.rename("renamed")
    Path("data").mkdir()
    Path("renamed").rename("data/quickstart")
    for block in code_blocks("python"):
        exec(block, {})
