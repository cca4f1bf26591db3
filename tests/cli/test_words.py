import random
import time
from pathlib import Path

import pytest

from unet.cli.arguments import parse
from unet.cli.main import main
from unet.runtime.text import printable

pytestmark = pytest.mark.usefixtures("workdir")


def test_images_may_follow_options(config: Path, data_root: Path) -> None:
    assert main(["train", str(config), "train.epochs=1"]) == 0
    first, second = (str(data_root / "images" / f"{i}.png") for i in (0, 1))
    command = ["predict", "runs/tiny/best.pt", first, "--tta", "flips,turns", second]
    assert main([*command, "-o", "masks", "train.device=cpu"]) == 0
    assert sorted(path.name for path in Path("masks").iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "best.pt", "a.png", "-o", "lr=0.1"],
        ["predict", "best.pt", "a.png", "--out", "lr=0.1"],
        ["predict", "best.pt", "a.png", "--out=lr=0.1"],
        ["evaluate", "best.pt", "--images", "a=b", "--masks", "c=d"],
        ["check", "a.yaml", "--pictures", "a.b=c"],
        ["train", "a.yaml", "--runs", "a=b"],
    ],
)
def test_the_value_of_an_option_is_no_setting(words: list[str]) -> None:
    arguments, settings = parse([*words, "train.epochs=5"])
    assert settings == ["train.epochs=5"]
    values = {str(value) for value in vars(arguments).values()}
    expected = words[-1].removeprefix("--out=")
    assert expected in values


def test_a_setting_may_follow_an_option_whose_value_is_optional() -> None:
    arguments, settings = parse(["evaluate", "best.pt", "--instances", "data.root=a"])
    assert (arguments.instances, settings) == (True, ["data.root=a"])
    arguments, settings = parse(["data.root=a", "evaluate", "best.pt", "--instances", "cell"])
    assert (arguments.instances, settings) == ("cell", ["data.root=a"])


def test_a_file_that_looks_like_a_setting_is_a_file(config: Path, data_root: Path) -> None:
    assert main(["train", str(config), "train.epochs=1"]) == 0
    (data_root / "images" / "0.png").rename("img=1.png")
    assert main(["predict", "runs/tiny/best.pt", "img=1.png", "-o", "masks"]) == 0
    assert Path("masks/img=1.png").exists()


WORDS = [
    "", "-", "--", "a\0b", "\udcff\ud800", "a\nb\x1b[31m", "~nouser", "*[", "=", "a=", "=b",
    "x" * 300, "x" * 100_000, "data.classes=" + "{a: 0}" * 60, "train.epochs=" + "9" * 5000, "..",
    "a." * 3000 + "=1", "train.epochs=[" * 500, "data=" + "[" * 50_000, "-x", "--x=y", "--size",
    "-o", "--tta=", "{a: b}", "?!", "é", "-1", "best.pt", "-oX", "train.init_from=x", "name=../x",
]  # fmt: skip


@pytest.mark.parametrize(
    "command", ["train", "init", "check", "evaluate", "predict", "export", "info"]
)
def test_no_word_of_a_command_line_gives_a_traceback(
    command: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    characters = [*map(chr, range(256)), *"=./-\u202e\ud800"]
    words = [*WORDS, *("".join(rng.choices(characters, k=12)) for _ in range(40))]
    lines = [[word] for word in words]
    lines += [rng.sample(words, 3) for _ in range(60)]
    lines += [[str(config), word] for word in words] if command == "train" else []
    start = time.process_time()
    for line in lines:
        try:
            code = main([command, *line])
        except SystemExit as error:  # --help
            code = int(error.code or 0)
        shown = capsys.readouterr()
        assert code in (0, 1, 2), line
        assert code == 0 or shown.err, line
        assert "Traceback" not in shown.err, line
        assert "this is a bug" not in shown.err, (line, shown.err)
        assert printable(shown.err + shown.out, keep="\n") == shown.err + shown.out, line
        assert len(shown.err) < 20_000, line
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "a.yaml"], "trian: unknown command; did you mean unet train?"),
        (["fit"], "fit: unknown command; did you mean unet train?"),
        (["val", "best.pt"], "did you mean unet evaluate?"),
        (["segment"], "did you mean unet predict?"),
        (["a.yaml"], "a.yaml: unknown command; did you mean unet train a.yaml?"),
        (["best.pt", "images"], "did you mean unet evaluate best.pt or unet predict best.pt IM"),
        (["help", "trian"], "trian: unknown command; did you mean unet train?"),
        (["xyzzy"], "expected one of init, import, check, train, evaluate, calibrate, predict"),
        ([], "expected a command: init, import, check"),
        (["train", "--epochs", "3", "a.yaml"], "have no dashes: did you mean train.epochs=3?"),
        (["train", "a.yaml", "--lr=0.1"], "did you mean optimizer.lr=0.1?"),
        (["train", "a.yaml", "--batch-size", "8"], "did you mean train.batch_size=8?"),
        (["train", "a.yaml", "--device", "cuda"], "did you mean train.device=cuda?"),
        (["train", "a.yaml", "--overwritte"], "did you mean --overwrite?"),
        (["train", "a.yaml", "--force"], "did you mean --overwrite?"),
        (["train", "a.yaml", "--tta", "x"], "--tta: is no option of unet train, but of unet evalu"),
        (["train", "--config", "a.yaml"], "give the file without an option"),
        (["train", "a.yaml", "resume=True"], "resume: is no setting, but an option: --resume"),
        (["predict", "a.pt", "b", "out=x"], "out: is no setting, but an option: --out x"),
        (["predict", "a.pt", "b", "--min_size", "5"], "did you mean --min-size?"),
        (["predict", "a.pt", "b", "--nonsense"], "see unet predict --help"),
        (["predict", "a.pt", "b", "--threshold", "2"], "got '2', expected a number from 0 to 1"),
        (["predict"], "for example: unet predict runs/mine/best.pt images/"),
        (["train", "--folds", "2", "a.yaml"], "--folds: invalid choice: '2'"),
    ],
)  # fmt: skip
def test_what_was_meant_is_suggested(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("epochs=3", "train.epochs=3"),
        ("device=gpu", "train.device=cuda"),
        ("device=0", "train.device=cuda:0"),
        ("lr=0.1", "optimizer.lr=0.1"),
        ("train.lr=0.1", "optimizer.lr=0.1"),
        ("device=cuda", "train.device=cuda"),
        ("batch=8", "train.batch_size=8"),
        ("imgsz=512", "augment.crop=[512,512]"),
        ("learning_rate=1e-4", "optimizer.lr=1e-4"),
        ("max_epochs=9", "train.epochs=9"),
        ("workers=4", "train.num_workers=4"),
        ("encoder_name=resnet34", "model.encoder=resnet34"),
        ("patience=5", "train.patience=5"),
        ("fliplr=0.5", "augment.flip_horizontal"),
        ("weights=a.pt", "train.init_from=a.pt"),
        ("optimizer.learning_rate=1", "optimizer.lr=1"),
        ("trian.epochs=3", "train.epochs=3"),
        ("train.epoch=3", "train.epochs=3"),
        ("val_split=0.2", "data.validation.fraction=0.2"),
        ("root=x", "data.root=x"),
    ],
)
def test_names_of_other_sections_and_tools_are_suggested(
    word: str, meant: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), word]) == 2
    assert capsys.readouterr().err == f"error: {word}: unknown setting; did you mean {meant}?\n"


def test_words_after_two_dashes_are_files() -> None:
    line = ["predict", "best.pt", "--tta", "flips", "tiling.overlap=8", "--", "a=b.png", "-x.png"]
    arguments, settings = parse(line)
    assert arguments.paths == ["best.pt", "a=b.png", "./-x.png"]
    assert (arguments.tta, settings) == (["flips"], ["tiling.overlap=8"])
    assert parse(["train", "--", "a.yaml"])[0].config == Path("a.yaml")
    assert parse(["--", "info", "best.pt"])[0].checkpoint == "best.pt"
