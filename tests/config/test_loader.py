from pathlib import Path

import pytest
import yaml

from unet.config.loader import apply_overrides, config_from_dict, load_config, load_yaml
from unet.config.schema import Config
from unet.config.values import config_to_dict

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = """
data:
  root: somewhere
  classes: {ground: 0, cell: 255}
  validation: {fraction: 0.2}
train: {epochs: 5}
"""


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
    with pytest.raises(ValueError, match="expected different names, each with a whole number"):
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
        ("model.widht=[8]", "model.widht: unknown key; did you mean model.widths?"),
        ("modle.widths=[8]", "modle: unknown key; did you mean model?"),
        ("train.zzz=1", "train.zzz: unknown key; known: epochs, steps_per_epoch,"),
        ("train.epochs=ten", "train.epochs: got the text 'ten', expected a whole number at least"),
        ("train.epochs=2.5", "train.epochs: got 2.5, expected a whole number"),
        ("train.epochs=true", "train.epochs: got true, expected a whole number"),
        ("train.epochs=0", "train.epochs: got 0, expected a whole number at least 1"),
        ("train.epochs=", "train.epochs: got nothing, expected a whole number"),
        ("train=5", "train: got 5, expected a section of epochs, steps_per_epoch,"),
        ("optimizer.lr=-1", "optimizer.lr: got -1, expected a number above 0"),
        ("optimizer.lr=.nan", "optimizer.lr: got nan, expected a number"),
        ("optimizer.name=adam", "optimizer.name: got the text 'adam', expected one of adamw, sgd"),
        ("model.widths=8", "model.widths: got 8, expected a list, each item a whole number"),
        ("model.widths=[8, 0]", "model.widths[1]: got 0, expected a whole number at least 1"),
        ("augment.crop=[64]", "augment.crop: got the list [64], expected a list of 2"),
        ("augment.flip_vertical=1", "augment.flip_vertical: got 1, expected true or false"),
        ("data.classes.cell=-3", "data.classes.cell: got -3, expected a whole number at least 0"),
        ("data.classes={1: 0, 2: 1}", "data.classes: got the name 1, expected text; put it in"),
        ("data.validation.stems=[7]", "data.validation.stems: got the list [7], expected a list"),
        ("loss.border={sigma: 0}", "loss.border.sigma: got 0, expected a number above 0"),
        (
            "model={padding: none}",
            "model.padding: got the text 'none', expected one of same, valid",
        ),
        ("model.dropout=1", "model.dropout: got 1, expected a number at least 0 and at most"),
        ("tiling.batch_size=0", "tiling.batch_size: got 0, expected a whole number at least 1"),
        ("data.normalization=all", "data.normalization: got the text 'all', expected one of"),
        ("data.normalization={mean: [1]}", "data.normalization.std: missing, expected a list"),
        ("model.encoder=resnet", "model.encoder: got the text 'resnet', expected one of none, res"),
        ("optimizer.lr=1e999", "optimizer.lr: got the text '1e999', expected a number"),
        (f"optimizer.lr={10**400}", f"optimizer.lr: got {10**400}, expected a number"),
        ("epochs", "'epochs': expected an override such as train.epochs=5"),
        ("train.epochs=[", "'train.epochs=[': is not YAML"),
        ("train.epochs=2024-13-45", "is not YAML: month must be in 1..12"),
        ("train.epochs=" + "[" * 5000, "is not YAML"),
    ],
)
def test_an_error_is_named_with_its_path(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        load(tmp_path, SMALL, override)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: ")
    assert message in str(caught.value)


def test_all_errors_of_a_file_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.rot") as caught:
        load(tmp_path, SMALL.replace("root", "rot").replace("epochs: 5", "epochs: five"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "data.rot: unknown key; did you mean data.root?" in lines[0]
    assert "data.root: missing, expected text" in lines[1]
    assert "train.epochs: got the text 'five'" in lines[2]


def test_yaml_merges_are_read(tmp_path: Path) -> None:
    text = SMALL.replace("{epochs: 5}", "{<<: {epochs: 3, batch_size: 2}, epochs: 5}")
    assert load(tmp_path, text).train.epochs == 5
    assert load(tmp_path, text).train.batch_size == 2


def test_a_repeated_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got the key 'train' twice.*line 7"):
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
    with pytest.raises(ValueError, match="is not YAML: got the key 'a' twice"):
        load_yaml("a: 1\na: 2")
    with pytest.raises(ValueError, match="is not YAML: "):
        load_yaml(b"\x80PK\x03")


def test_overrides_change_nested_values_and_nothing_else() -> None:
    errors: list[str] = []
    before = {"inner": {"ratio": 0.1}, "count": 1}
    after = apply_overrides(before, ["inner.ratio=0.3", "sizes=[4]", "count", "kind=["], errors)
    assert after == {"inner": {"ratio": 0.3}, "count": 1, "sizes": [4]}
    assert before == {"inner": {"ratio": 0.1}, "count": 1}
    assert errors[0] == "'count': expected an override such as train.epochs=5"
    assert errors[1].startswith("'kind=[': is not YAML: ")
