from pathlib import Path

import pytest

from unet.cli.main import main

pytestmark = pytest.mark.usefixtures("workdir")


def test_the_command_trains_the_folds_once(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["review", str(config), "train.epochs=1", "data.validation={fraction: 0.5}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "note: data.validation has no folds; 5 are trained" in out
    assert "wrote runs/tiny_review/review.html" in out
    assert main(words) == 2
    assert "runs/tiny_review/review.html: exists; pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert capsys.readouterr().out.count("the run is complete") == 5
    assert main(["review", "runs/tiny_fold3", "-o", "again"]) == 0
    assert " of 6 to look at" in capsys.readouterr().out
    assert main(["review", "runs/tiny_fold3", "--minutes", "1"]) == 2
    assert main(["review", str(config), "runs/tiny_fold3"]) == 2
