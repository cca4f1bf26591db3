"""A config as plain values: to write it, to list it, to compare it with another; and its folds."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from unet.config.data_schema import MayChange
from unet.config.schema import Config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Turn a config into dicts, lists and scalars, as a YAML file holds them.

    The classes become a list: their order has a meaning, and tools may sort the keys of a mapping.
    """
    result: dict[str, Any] = _plain(dataclasses.asdict(config))
    classes = result["data"]["classes"]
    result["data"]["classes"] = [{"name": name, "value": classes[name]} for name in classes]
    return result


def configs_of_folds(config: Config) -> list[Config]:
    """Return the config of each fold of `data.validation.folds`, in order."""
    validation = config.data.validation
    if validation.folds is None:
        raise ValueError(
            "all_folds=True: expected data.validation.folds, the number of folds, such as "
            "data.validation='{folds: 5}'"
        )
    return [
        dataclasses.replace(
            config,
            name=f"{config.name}_fold{fold}",
            data=dataclasses.replace(
                config.data, validation=dataclasses.replace(validation, fold=fold)
            ),
        )
        for fold in range(validation.folds)
    ]


def flat_settings(config: Config) -> dict[str, Any]:
    """Return the value of every setting by its dotted path, such as `train.epochs`."""
    return {path: value for path, value, _ in _flatten("", config, MayChange(0))}


def changed_settings(before: Config, now: Config, allowed: MayChange) -> list[str]:
    """Describe every setting that differs, except those that are marked with `allowed`."""
    old, new = (
        {path: value for path, value, mark in _flatten("", one, MayChange(0)) if not mark & allowed}
        for one in (before, now)
    )
    changed = [
        f"{path} was {old.get(path, 'not there')} and is now {new.get(path, 'not there')}"
        for path in old | new
        if old.get(path) != new.get(path)
    ]
    if not changed and list(before.data.classes) != list(now.data.classes):
        changed = [
            f"the order of data.classes was {', '.join(before.data.classes)} and is now "
            f"{', '.join(now.data.classes)}"
        ]
    return changed


def _flatten(path: str, value: Any, mark: MayChange) -> Iterator[tuple[str, Any, MayChange]]:
    """Yield path, value and mark of each setting; a section's mark holds for all inside it."""
    if dataclasses.is_dataclass(value):
        for name, annotation in get_type_hints(type(value), include_extras=True).items():
            own = [one for one in get_args(annotation) if isinstance(one, MayChange)]
            inner = f"{path}.{name}" if path else name
            yield from _flatten(inner, getattr(value, name), mark | (own or [mark])[0])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(f"{path}.{key}", item, mark)
    else:
        yield path, _plain(value), mark


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
