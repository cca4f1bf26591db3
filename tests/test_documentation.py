"""The pages say what is true: their commands parse, their code runs, their links lead somewhere."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from helpers import write_pairs
from PIL import Image

import unet
from unet.cli.arguments import parse
from unet.config.loader import config_from_dict, load_config
from unet.config.schema import Config
from unet.evaluation.measure import OBJECT_MEASURES
from unet.metrics.confusion import Scores

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "data" / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def code_blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page, block)
        for page, text in TEXTS.items()
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def code_spans(text: str) -> list[str]:
    """Inline code, without the fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def console_commands() -> list[tuple[str, list[str]]]:
    """Every command of every console block, as a page and the words of the command."""
    commands = []
    for page, block in code_blocks("console"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                end = words.index("&&")
                commands.append((page, words[:end]))
                words = words[end + 1 :]
            commands.append((page, words))
    return [(page, words) for page, words in commands if words]


def unet_arguments(words: list[str]) -> list[str] | None:
    """The arguments of `unet` in a command, which torchrun may start; None for other commands."""
    words = words[1:] if "=" in words[0] else words  # a variable of the environment
    if words[:1] == ["unet"]:
        return words[1:]
    if words[:1] == ["torchrun"] and "-m" in words:
        return words[words.index("-m") + 2 :]
    return None


def setting_names(section: type = Config, prefix: str = "") -> Iterator[str]:
    for field in fields(section):
        name = f"{prefix}{field.name}"
        yield name
        annotation = get_type_hints(section)[field.name]
        for one in (annotation, *get_args(annotation)):
            if is_dataclass(one) and isinstance(one, type):
                yield from setting_names(one, f"{name}.")


def minimal_config() -> dict[str, Any]:
    """The config that the README shows."""
    [block] = [block for page, block in code_blocks("yaml") if page == "README.md"]
    return {"name": "mine", **yaml.safe_load(block)}


@pytest.mark.parametrize("page", TEXTS)
def test_every_unet_command_parses_and_its_settings_are_valid(page: str) -> None:
    for of_page, words in console_commands():
        arguments = unet_arguments(words)
        if of_page != page or arguments is None:
            continue
        parsed, settings = parse(arguments)
        config = getattr(parsed, "config", None)
        if config not in (None, Path("configs/mine.yaml"), Path("data/mine")):
            load_config(ROOT / config, settings)
        else:
            config_from_dict(minimal_config(), settings, where=" ".join(words))


@pytest.mark.parametrize("page", TEXTS)
def test_every_unet_command_within_a_sentence_parses(page: str) -> None:
    for span in code_spans(TEXTS[page]):
        words = shlex.split(span)
        arguments = unet_arguments(words) if words and "..." not in words else None
        # Only those that name a file: `unet predict --threshold P` is not a whole command.
        if arguments and len(arguments) > 1 and arguments[1].isupper():
            parse(arguments)


@pytest.mark.parametrize("page", TEXTS)
def test_every_option_exists(page: str) -> None:
    text = TEXTS[page]
    sources = (ROOT / "unet" / "cli" / "arguments.py", *(ROOT / "scripts").glob("*.py"))
    known = set(re.findall(r'"(--[\w-]+)"', "\n".join(path.read_text() for path in sources)))
    known |= {"--windows", "--no-windows", "--help"}
    known |= {"--standalone", "--nproc-per-node", "--max-restarts"}  # torchrun's
    known |= {"--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--scale"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= known


@pytest.mark.parametrize("page", TEXTS)
def test_every_setting_exists(page: str) -> None:
    names = set(setting_names())
    sections = "|".join(name for name in names if any(n.startswith(f"{name}.") for n in names))
    for span in code_spans(TEXTS[page]):
        found = re.search(rf"(?<![\w/.-])((?:{sections})\.\w+(?:\.\w+)*)", span)
        if found and not re.search(r"\.(md|py|yaml|onnx|pt2|pt|png)$", found[1]):
            assert found[1] in names, f"{page}: {span}"


def test_every_yaml_block_is_a_config() -> None:
    for page, block in code_blocks("yaml"):
        config_from_dict({"name": "mine", **yaml.safe_load(block)}, where=page)


def test_every_score_that_the_page_about_evaluation_names_exists() -> None:
    names = {field.name for field in fields(Scores)} | {*OBJECT_MEASURES, "hausdorff95"}
    scores = r"((?:mean|micro|frequency|pixel|rand|warping|foreground|thinned|object)_\w+[\w.]*)"
    found = re.findall(rf"`{scores}`", TEXTS["docs/evaluation.md"])
    assert len(found) > 10
    assert set(found) - {"object_thresholds.csv"} <= names


def test_the_tables_about_data_hold_valid_settings() -> None:
    rows = re.findall(r"^\|.*\| (`\w+: .*`[^|]*) \|$", TEXTS["docs/data.md"], re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        spans = re.findall(r"`(\w+: [^`]+)`", row)
        for group in [spans] if "images" in row else [[span] for span in spans]:
            data: dict[str, Any] = {
                "root": "data/mine",
                "classes": {"background": 0, "axon": 1, "myelin": 2},
                "validation": {"fraction": 0.2},
                **{key: value for span in group for key, value in yaml.safe_load(span).items()},
            }
            if "split" in data["validation"]:
                data["csv"] = "pairs.csv"
            model = {"in_channels": len(data.get("channels", "RGB"))}
            config = {"name": "mine", "data": data, "model": model, "train": {"epochs": 5}}
            config_from_dict(config, where=row)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_every_python_block_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("data/mine"), 6)
    Image.open("data/mine/images/1.png").save("image.png")
    Path("configs").mkdir()
    settings = minimal_config()
    del settings["name"]
    settings["data"]["classes"] = {"background": 0, "cell": 200}
    settings["augment"]["crop"] = [24, 32]
    settings["model"] = {"in_channels": 1, "widths": [4, 8]}
    settings["train"] = {"epochs": 1, "batch_size": 2, "num_workers": 0}
    Path("configs/mine.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if page != "README.md":  # whose code trains this run
        unet.train(unet.load_config("configs/mine.yaml"))
    blocks = [block for of_page, block in code_blocks("python") if of_page == page]
    assert blocks
    for block in blocks:
        exec(block, {})


def test_every_python_block_is_on_a_page_whose_blocks_run() -> None:
    assert {page for page, _ in code_blocks("python")} == {"README.md", "docs/python.md"}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*TEXTS, "CHANGELOG.md"])
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_linked_from_another_one() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        others = (text for page, text in TEXTS.items() if page != f"docs/{path.name}")
        assert any(f"{path.name})" in text or f"{path.name}#" in text for text in others), path


def test_every_file_that_a_page_names_exists() -> None:
    for page, text in TEXTS.items():
        for span in code_spans(text):
            if re.fullmatch(r"(scripts|configs|docs|tests)/\w+\.\w+", span):
                assert (ROOT / span).exists(), f"{page}: {span}"
            elif re.fullmatch(r"[a-z_]+/\w+\.py", span):
                assert (ROOT / "unet" / span).exists(), f"{page}: {span}"
        for script in re.findall(r"python scripts/(\S+?\.py)", text):
            assert (ROOT / "scripts" / script).exists(), f"{page}: {script}"
        for extras in re.findall(r'pip install -e "\.\[([\w,]+)\]"', text):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), page


def test_every_script_and_every_config_is_named_on_a_page() -> None:
    text = "\n".join(TEXTS.values())
    for path in [*(ROOT / "scripts").glob("*.py"), *(ROOT / "configs").glob("*.yaml")]:
        is_module = path.suffix == ".py" and "__main__" not in path.read_text(encoding="utf-8")
        assert is_module or path.name in text, path.name


def test_the_readme_has_at_most_150_lines_and_every_page_at_most_200() -> None:
    for page, text in TEXTS.items():
        if page != "docs/configuration.md":  # a table of all settings, generated
            longest = {"README.md": 150, "configuration.md": 250}
            assert len(text.splitlines()) <= longest.get(Path(page).name, 200), page


def test_the_readme_has_the_two_commands_that_ci_runs() -> None:
    commands = re.findall("^python3 -m venv .*$", TEXTS["README.md"], re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("&& pip install -e . && unet train configs/quickstart.yaml")
    assert commands[1].endswith('&& pip install -e ".[dev]" && pytest -n 2')


def test_every_page_opens_with_what_the_reader_can_do_after_it() -> None:
    for page, text in TEXTS.items():
        if page.startswith("docs/") and page != "docs/configuration.md":
            assert text.split("\n\n")[1].startswith("After reading this page, you "), page


def test_every_public_name_exists_and_is_documented() -> None:
    for name in unet.__all__:
        assert getattr(unet, name).__doc__, name
        assert f"unet.{name}" in TEXTS["docs/python.md"], name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = unet.nonsense


def test_the_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {PROJECT['version']}" in changelog
