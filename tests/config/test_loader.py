import re
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import small_config

from unet.config.loader import config_from_dict, load_config, load_yaml
from unet.config.schema import Config
from unet.config.values import config_to_dict, flat_settings
from unet.runtime.text import printable

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = """
data:
  root: somewhere
  classes: {ground: 0, cell: 255}
  validation: {fraction: 0.2}
train: {epochs: 5}
"""
LAUGHS = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def load(tmp_path: Path, text: str = SMALL, *overrides: str) -> Config:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_the_file_names_the_run(tmp_path: Path) -> None:
    assert load(tmp_path).name == "mine"
    assert load(tmp_path, SMALL + "name: other").name == "other"


def test_a_config_survives_being_written_and_read(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "data.ignore=[7, 8]", "data.classes.cell=9")
    assert config_from_dict(config_to_dict(config)) == config


def test_classes_may_be_a_list_and_keep_its_order(tmp_path: Path) -> None:
    items = "[{name: ground, value: 0}, {name: cell, value: 255}]"
    as_list = SMALL.replace("{ground: 0, cell: 255}", items)
    config = load(tmp_path, as_list)
    assert config == load(tmp_path)
    assert list(config.data.classes) == ["ground", "cell"]
    assert load(tmp_path, as_list, "data.classes.cell=9").data.classes == {"ground": 0, "cell": 9}
    assert load(tmp_path, SMALL, f"data.classes={items}") == config
    twice = as_list.replace("name: cell", "name: ground")
    with pytest.raises(ValueError, match="expected different class names with their"):
        load(tmp_path, twice)


def test_sorting_the_keys_of_a_written_config_does_not_swap_the_classes() -> None:
    raw = {"name": "a", **load_yaml(SMALL)}
    config = config_from_dict(raw)
    assert list(config.data.classes) == ["ground", "cell"]
    text = yaml.safe_dump(config_to_dict(config), sort_keys=True)
    again = config_from_dict(load_yaml(text))
    assert again == config
    assert list(again.data.classes) == ["ground", "cell"]


def test_overrides_are_yaml_and_checked(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "optimizer.lr=1e-4", "model.widths=[8, 16]", "train.epochs=9")
    assert config.optimizer.lr == 1e-4
    assert config.model.widths == (8, 16)
    assert config.train.epochs == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=[8]", "unknown setting; did you mean model.widths=[8]?"),
        ("modle.widths=[8]", "unknown setting; did you mean model.widths=[8]?"),
        ("train.zzz=1", "unknown setting; known: epochs, minutes, steps_per_epoch,"),
        ("train.epochs=ten", "train.epochs=ten: got the text 'ten', expected a whole number from"),
        ("train.epochs=2.5", ": got 2.5, expected a whole number"),
        ("train.epochs=true", ": got true, expected a whole number"),
        ("train.epochs=0", ": got 0, expected a whole number from 1 to 1000000 or null"),
        ("train.epochs=", ": got nothing, expected a number such as 50; or set train.minutes"),
        ("train=5", ": got 5, expected a section of epochs, minutes, steps_per_epoch,"),
        ("optimizer.lr=-1", ": got -1, expected a number above 0 and at most 100"),
        ("optimizer.lr=.nan", ": got nan, expected a number"),
        ("optimizer.name=adam", ": got the text 'adam', expected one of adamw, sgd"),
        ("model.widths=8", ": got 8, expected a list of 1 to 10 items, each a whole number from"),
        ("model.widths=[8, 0]", "model.widths[1]: got 0, expected a whole number from 1 to 8192"),
        ("augment.crop=[64]", ": got the list [64], expected a list of 2"),
        ("augment.flip_vertical=1", ": got 1, expected true or false"),
        ("data.classes.cell=-3.5", ": got -3.5, expected a mask value"),
        ("data.classes={1: 0, 2: 1}", "data.classes.1: got the name 1, expected text; put it in"),
        ("data.validation.stems=[7]", ": got the list [7], expected a list"),
        ("loss.border={sigma: 0}", "loss.border.sigma: got 0, expected a number above 0"),
        (
            "model={padding: none}",
            "model.padding: got the text 'none', expected one of same, valid",
        ),
        ("model.dropout=1", ": got 1, expected a number from 0 to 0.95"),
        ("tiling.batch_size=0", ": got 0, expected a whole number from 1 to 65536"),
        ("data.normalization=all", ": got the text 'all', expected one of"),
        ("data.normalization={mean: [1]}", "data.normalization.std: missing, expected a list"),
        ("model.encoder=resnet", ": got 'resnet', expected one of none, res"),
        ("optimizer.lr=1e999", ": got the text '1e999', expected a number"),
        (f"optimizer.lr={10**400}", "0000: got 1000"),
        ("epochs", "epochs: expected an override such as train.epochs=5"),
        ("train.epochs=[", "train.epochs=[: the value is not YAML"),
        ("train.epochs=2024-13-45", "is not YAML: month must be in 1..12"),
        ("train.epochs=" + "[" * 5000, "is nested too deeply"),
    ],
)
def test_an_error_is_named_with_its_path(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=": ") as caught:
        load(tmp_path, SMALL, override)
    assert str(caught.value).startswith(override[:30])
    assert message in str(caught.value)


def test_all_errors_of_a_file_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.rot") as caught:
        load(tmp_path, SMALL.replace("root", "rot").replace("epochs: 5", "epochs: five"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "data.rot: unknown setting; did you mean data.root?" in lines[0]
    assert "data.root: missing, expected a folder" in lines[1]
    assert "train.epochs: got the text 'five'" in lines[2]


def test_yaml_merges_are_read(tmp_path: Path) -> None:
    text = SMALL.replace("{epochs: 5}", "{<<: {epochs: 3, batch_size: 2}, epochs: 5}")
    assert load(tmp_path, text).train.epochs == 5
    assert load(tmp_path, text).train.batch_size == 2


def test_a_repeated_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 7, column 1: got the key 'train' twice"):
        load(tmp_path, SMALL + "train: {epochs: 6}")


@pytest.mark.parametrize("text", ["a: [", "\tx", "just text", "", "- 1"])
def test_a_file_that_is_not_a_config_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml: (is not YAML|got .*, expected sections)"):
        load(tmp_path, text)


def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.yaml: there is no such config file"):
        load_config(tmp_path / "no.yaml")


def test_a_key_of_yaml_may_not_be_repeated() -> None:
    assert load_yaml("a: 1\nb: [2, 3]") == {"a": 1, "b": [2, 3]}
    with pytest.raises(ValueError, match="is not YAML: line 2, column 1: got the key 'a' twice"):
        load_yaml("a: 1\na: 2")
    with pytest.raises(ValueError, match="is not YAML: "):
        load_yaml(b"\x80PK\x03")


def test_overrides_change_nested_values_and_nothing_else() -> None:
    raw = {"name": "a", **load_yaml(SMALL)}
    config = config_from_dict(raw, ["data.classes.cell=9", "augment.crop=[8, 8]"])
    assert config.data.classes == {"ground": 0, "cell": 9}
    assert config.augment.crop == (8, 8)
    assert raw["data"]["classes"] == {"ground": 0, "cell": 255}
    assert config.data.root == "somewhere"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\n" + LAUGHS, "is too large: expected at most 100000"),
        ("a: &a {k: 1}\n" + LAUGHS.replace("[", "{<<: [").replace("]", "]}"), "is too large"),
        ("a: &a [*a]", "is nested too deeply: expected at most 20 levels"),
        ("a: " + "[" * 100 + "]" * 100, "is nested too deeply"),
        ("a: " + "[" * 100_000, "is nested too deeply"),
        ("a: '" + "x" * 600_000 + "'", "is too long: expected at most 500000 bytes"),
        ("a: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("a: !!int ''", "is not YAML: "),
        ("a: !!timestamp x", "is not YAML: "),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("? [a]\n: b", "found unhashable key"),
        ("a:\n\t- b", "2, column 1: found character '\\t' that cannot start any token; indent"),
        ("a: \x00", "is not YAML: unacceptable character"),
        (b"a: \xe9", "is not YAML: "),
    ],
)  # fmt: skip
def test_yaml_that_would_fill_memory_or_is_none_is_an_error(
    text: str | bytes, message: str
) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"is (not|too|nested)") as caught:
        load_yaml(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.process_time() - start < 2


def test_shared_lists_of_a_checkpoint_are_counted_as_often_as_they_are_used() -> None:
    shared: list[object] = ["x"]
    for _ in range(19):
        shared = [shared] * 10
    for value in (shared, [shared], {"a": shared}):
        with pytest.raises(ValueError, match=r"^best\.pt: is (too large|nested too deeply)"):
            config_from_dict({"name": "a", "data": value}, where="best.pt")
    inside: list[object] = []
    inside.append(inside)
    with pytest.raises(ValueError, match=r"^best\.pt: is nested too deeply"):
        config_from_dict({"name": inside}, where="best.pt")


def numeric_settings() -> list[str]:
    names = {path for path, value in flat_settings(small_config()).items() if value is not True}
    return sorted(name for name in names if not name.startswith("data.classes."))


@pytest.mark.parametrize(
    "value",
    ["1e99", "-1e99", ".inf", ".nan", str(10**12), str(10**400), f"0x{'f' * 5000}", "[1, 2]",
     f"[{'7, ' * 3000}]", f"'{'x' * 30_000}'", "{a: {b: [c]}}", "2024-01-01", "!!binary x"],
)  # fmt: skip
@pytest.mark.parametrize("path", numeric_settings())
def test_every_setting_has_bounds_and_shortens_values(path: str, value: str) -> None:
    try:
        config = small_config(f"{path}={value}")
    except ValueError as error:
        message = str(error)
    else:  # only where a text or a list of numbers makes sense
        message = f"{path}="
        got = flat_settings(config)[path]
        assert path == "data.nodata" or not isinstance(got, int | float) or abs(got) <= 10**12
    assert all(len(line) < 700 for line in message.splitlines())
    assert f"{path}=" in message


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "a\x1b[31mb", "a\x07", "\x9b31m", "a\u202eb", "x" * 101]
)
def test_names_that_a_terminal_cannot_show_are_refused(name: str) -> None:
    for override in (
        {"data": {"root": "a", "classes": {name: 0, "b": 1}, "validation": {"fraction": 0.5}}},
        {"name": name * 2},
    ):
        with pytest.raises(
            ValueError, match=r"got (this name|the text|an empty text|'x)"
        ) as caught:
            config_from_dict({"name": "a", **load_yaml(SMALL), **override})
        assert printable(str(caught.value), keep="\n") == str(caught.value)


def test_errors_of_overrides_name_the_word_and_others_the_file(tmp_path: Path) -> None:
    for override, message in (
        ("train.epochs=ten", "train.epochs=ten: got the text 'ten', expected a whole number"),
        ("model={padding: x}", "model={padding: x}: model.padding: got the text 'x', expected"),
        ("model.widths=[8, 0]", "model.widths=[8, 0]: model.widths[1]: got 0, expected"),
        ("trian.epochs=3", "trian.epochs=3: unknown setting; did you mean train.epochs=3?"),
        ("augment.crop=128", "augment.crop=128: got 128, expected a list of 2, each a whole "
         "number from 1 to 16384 or null; write [128, 128]"),
        ("data.ignore=255", "data.ignore=255: got 255, expected a list, each item a mask value"),
        ("train.epochs=[", "train.epochs=[: the value is not YAML: line 1, column 2: expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load(tmp_path, SMALL, override)
        assert str(caught.value).startswith(message)
    with pytest.raises(ValueError, match=r"^/.*mine\.yaml: model\.widht: unknown setting; did"):
        load(tmp_path, SMALL + "model: {widht: [8]}", "train.epochs=3")


def test_an_error_of_syntax_shows_the_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml: is not YAML: line 3, column ") as caught:
        load(tmp_path, "data:\n  root: a\n  classes: [1, 2]]\ntrain: {epochs: 5}\n")
    place, line, mark = str(caught.value).splitlines()
    assert "expected <block end>, but found ']'" in place
    assert line.strip() == "classes: [1, 2]]"
    assert mark.strip() == "^"


def test_what_is_missing_comes_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing") as caught:
        load(tmp_path, "model: {}")
    assert [line.partition("mine.yaml: ")[2] for line in str(caught.value).splitlines()] == [
        "data.root: missing, expected a folder, such as data/mine",
        "data.classes: missing, expected different class names with their mask values, such as "
        "{background: 0, cell: 255}",
        "data.validation: missing, expected a choice of validation images, such as {fraction: 0.2}",
    ]


def test_settings_are_changed_by_keywords_dicts_and_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "data: {root: somewhere, classes: {a: 0, b: 1}, validation: {fraction: 0.2}}\n"
        "train: {epochs: 5, batch_size: 8}\n"
    )
    for config in (
        load_config(path, name="b", train={"epochs": 2}, data={"classes": {"x": 0, "y": 3}}),
        load_config(path, {"name": "b", "train.epochs": 2, "data.classes": {"x": 0, "y": 3}}),
        load_config(path, ["name=b", "train.epochs=2"], data={"classes": {"x": 0, "y": 3}}),
        load_config(yaml.safe_load(path.read_text()) | {"name": "b"}, **{"train.epochs": 2}),
    ):
        assert config.name == "b"
        assert config.train.epochs == 2
        assert config.train.batch_size == 8  # the rest of a section stays
    assert load_config(path, data={"classes": {"x": 0, "y": 3}}).data.classes == {"x": 0, "y": 3}
    config = load_config(path, data={"root": tmp_path}, train={"seed": np.int64(3)})
    assert config.data.root == str(tmp_path)
    assert config.train.seed == 3


def test_wrong_changes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: {root: d, classes: {a: 0, b: 1}, validation: {fraction: 0.2}}\n")
    for changes, error, problem in (
        ({"train": {"epoch": 2}}, ValueError, "train.epoch=2: unknown.*did you mean train.epochs"),
        ({"train.epochs": "many"}, ValueError, "train.epochs=many: got the text 'many'"),
        ({"train": 5}, ValueError, "train=5: got 5, expected a section"),
        ("train.epochs=5", TypeError, "overrides: got 'train.epochs=5', expected a dict such as"),
        (5, TypeError, "overrides: got 5, expected a dict"),
    ):
        with pytest.raises(error, match=problem):
            load_config(path, changes)


def test_the_quickstart_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("quickstart")
    assert config == load_config(CONFIGS / "quickstart.yaml")
    Path("quickstart").write_text("data: 5\n")  # a file of this name is meant itself
    with pytest.raises(ValueError, match="quickstart: data: got 5"):
        load_config("quickstart")


def test_an_override_of_epochs_or_minutes_replaces_the_other(tmp_path: Path) -> None:
    train = load(tmp_path, SMALL, "train.minutes=5").train
    assert (train.epochs, train.minutes) == (None, 5)
    train = load(tmp_path, SMALL.replace("epochs: 5", "minutes: 2"), "train.epochs=7").train
    assert (train.epochs, train.minutes) == (7, None)
    both = SMALL.replace("epochs: 5", "epochs: 5, minutes: 2")
    for overrides in ([], ["train.epochs=7", "train.minutes=3"]):
        with pytest.raises(ValueError, match=r"train.minutes.*: got . with train.epochs .*one of"):
            load(tmp_path, both, *overrides)
    with pytest.raises(
        ValueError, match=r"mine.yaml: train.epochs: got nothing, expected a number"
    ):
        load(tmp_path, SMALL.replace("epochs: 5", "batch_size: 2"))
