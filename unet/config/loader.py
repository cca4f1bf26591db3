"""A YAML file, or a dict with the same settings, and overrides -> a checked config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unet.config.constraints import find_conflicts
from unet.config.parsing import describe_value, named_items, parse_section
from unet.config.schema import Config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, change it by `section.key=value` overrides, and check all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with every error found, one per line.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a config file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such config file; check the path")
    try:
        raw = load_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: got {describe_value(raw)}, expected sections such as 'data:'")
    return config_from_dict({"name": path.stem, **raw}, overrides, where=str(path))


def config_from_dict(
    raw: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "config"
) -> Config:
    """Check a plain dict, as `config_to_dict` returns it, with overrides, as `load_config` does."""
    errors: list[str] = []
    merged = apply_overrides(raw, overrides, errors)
    config = parse_section(Config, merged, "", errors)
    if not errors:
        errors = find_conflicts(config)
    if errors:
        raise ValueError("\n".join(f"{where}: {error}" for error in errors))
    assert isinstance(config, Config)
    return config


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"got the key {key.value!r} twice, expected it once; remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str | bytes) -> Any:
    """Read YAML; raise ValueError if it is none, or repeats a key."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None


def apply_overrides(
    raw: Mapping[str, Any], overrides: Sequence[str], errors: list[str]
) -> Mapping[str, Any]:
    """Return a changed copy of a dict; overrides are texts such as `train.epochs=5`."""
    for text in overrides:
        path, equals, value_text = text.partition("=")
        if not equals or not path:
            errors.append(f"{text!r}: expected an override such as train.epochs=5")
            continue
        try:
            value = load_yaml(value_text)
        except ValueError as error:
            errors.append(f"{text!r}: {error}")
            continue
        raw = _with_value(raw, path.split("."), value)
    return raw


def _with_value(raw: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    raw = named_items(raw)
    inner = raw if isinstance(raw, Mapping) else {}
    return {**inner, keys[0]: _with_value(inner.get(keys[0]), keys[1:], value)}
