"""A YAML file, or the dict that stands in it, and overrides -> a checked config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.config.constraints import find_conflicts
from unet.config.parsing import describe_value, load_yaml, override, read_section
from unet.config.schema import Config


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, change it by `section.key=value` overrides, and check all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with every fault found, a line each.
    """
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
    """Check a plain dict, as `config_to_dict` gives it, changed by overrides.

    Raises:
        ValueError: with every fault found, a line each, beginning with `where`.
    """
    faults: list[str] = []
    merged = override(raw, overrides, faults)
    config = read_section(Config, merged, "", faults)
    if not faults:
        faults = find_conflicts(config)
    if faults:
        raise ValueError("\n".join(f"{where}: {fault}" for fault in faults))
    assert isinstance(config, Config)
    return config
