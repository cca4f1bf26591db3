import re
from pathlib import Path

import pytest

from unet.cli.arguments import parse
from unet.cli.main import main

pytestmark = pytest.mark.usefixtures("workdir")


def test_a_typo_in_a_setting_gets_a_suggestion(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "modle.widths=[4]", str(config)]) == 2
    assert (
        "modle.widths=[4]: unknown setting; did you mean model.widths=[4]?"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("tta", [["--tta", "flips,turns"], ["--tta", "flips", "--tta", "turns"]])
def test_augmentations_are_given_together_or_one_by_one(tta: list[str]) -> None:
    for command in (["evaluate", "best.pt"], ["predict", "best.pt", "a.png", "-o", "masks"]):
        assert parse([*command, *tta])[0].tta == ["flips", "turns"]
        assert parse(command)[0].tta == []  # what one call extends is its own


@pytest.mark.parametrize(
    "command", ["", "train", "init", "check", "evaluate", "predict", "export", "info"]
)
def test_help_fits_the_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit, match="0"):
            parse([command, "--help"] if command else ["--help"])
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: unet {command}".strip())
        assert max(map(len, shown.splitlines())) <= columns
        assert not re.search(r"(?<!['\w])\w+\.\w+=\[", shown)  # zsh needs quotes


def test_the_command_help_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["help"], ["--help"], ["help", "train"], ["train", "--help"]):
        with pytest.raises(SystemExit) as error:
            main(words)
        assert error.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2] == shown[3]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_an_unknown_augmentation_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, message in (
        (
            "flips,blurs",
            "--tta: got flips,blurs, expected one or more of flips, turns, scales, such",
        ),
        ("turns,turns", "--tta: got turns 2 times, expected it once"),
    ):
        assert main([command, "best.pt", "image.png", "--tta", names]) == 2
        assert message in capsys.readouterr().err


def test_a_setting_without_equals_gets_a_suggestion(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.epochs:3"]) == 2
    assert "train.epochs:3: settings have the form KEY=VALUE" in capsys.readouterr().err
