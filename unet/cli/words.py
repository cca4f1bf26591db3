"""The words of a command line: files, options and settings, and what was meant by unknown ones."""

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from unet.config.loader import load_yaml
from unet.config.suggestions import suggest
from unet.runtime.text import shorten

# The form of a setting: train.epochs=5, but neither --out=masks nor runs/lr=0.1/best.pt.
_SETTING = re.compile(r"\w+(\.[^=/\\]+)*=")
_NEGATIVE = re.compile(r"-\.?\d")

# Names in other tools.
_OTHER_COMMANDS = {
    "import": "annotations coco labelme polygons",
    "init": "new create setup configure plan preprocess",
    "check": "verify validate_data lint inspect",
    "train": "fit run start",
    "evaluate": "eval val test validate score benchmark",
    "calibrate": "calibration temperature conformal",
    "predict": "infer inference segment apply detect",
    "export": "convert onnx save",
    "info": "show describe summary model version",
}
_OTHER_OPTIONS = {
    "--overwrite": "--force --exist-ok -f -y",
    "--out": "--output --output-dir --outdir --save-dir --output-folder",
    "--resume": "--continue -c --continue-training",
    "--traceback": "--debug --verbose -v",
    "--probabilities": "--save-probabilities --softmax",
    "--uncertainty": "--entropy --uncertain",
    "--tta": "--augment",
    "--threshold": "--conf",
    "--images": "--source --input -i",
}
# Options whose values are given without an option.
_FILES = "--config --cfg --model --weights --checkpoint --ckpt -m -w"


def find_command(words: Sequence[str], known: Iterable[str]) -> tuple[str | None, list[str]]:
    """Return the command, the first word that is no option or setting, and the other words.

    Raises:
        ValueError: if there is no such command.
    """
    for place, word in enumerate(words):
        if word == "--" or word.startswith("-") or _is_setting(word):
            continue
        if word not in known:
            raise ValueError(f"{shorten(word)}: unknown command; {_suggest_command(word, known)}")
        return word, [*words[:place], *words[place + 1 :]]
    return None, [word for word in words if word.startswith("-") and word != "--"]


def sort_words(
    words: Sequence[str], command: str, parsers: Mapping[str, argparse.ArgumentParser]
) -> tuple[list[str], list[str], list[str]]:
    """Divide the words of a command into files, options with their values, and settings.

    A word is a setting if it has the form KEY=VALUE and there is no such file. After `--`, all
    words are files.

    Raises:
        ValueError: if an option is unknown.
    """
    actions = {
        name: {option: one for one in parser._actions for option in one.option_strings}
        for name, parser in parsers.items()
    }
    files: list[str] = []
    options: list[str] = []
    settings: list[str] = []
    left = list(reversed(words))
    while left:
        word = left.pop()
        if word == "--":
            files += [f"./{one}" if one.startswith("-") else one for one in reversed(left)]
            break
        if not word.startswith("-") or word == "-":
            is_setting = _is_setting(word)
            if is_setting:
                _check_is_no_option(word, actions[command])
            (settings if is_setting else files).append(word)
            continue
        name, equals, _ = word.partition("=")
        action = actions[command].get(name if word.startswith("--") else word[:2])
        if action is None:
            raise ValueError(_suggest_option(word, left[-1:], command, actions))
        options.append(word)
        if equals or (len(word) > 2 and not word.startswith("--")):
            continue  # its value is part of the word
        for _ in range(action.nargs if isinstance(action.nargs, int) else 1):
            if left and _is_value(left[-1], optional=action.nargs == "?"):
                options.append(left.pop())
    return files, options, settings


def _is_setting(word: str) -> bool:
    return _SETTING.match(word) is not None and not os.path.exists(word)  # noqa: PTH110 (of any word)


def _is_value(word: str, optional: bool) -> bool:
    if word.startswith("-"):
        return _NEGATIVE.match(word) is not None
    return not optional or not (_is_setting(word) or word.endswith((".pt", ".pth")))


def _suggest_command(word: str, known: Iterable[str]) -> str:
    word = word.lower()
    if word.endswith((".yaml", ".yml")):
        return f"did you mean unet train {word}?"
    if word.endswith((".pt", ".pth")):
        return f"did you mean unet evaluate {word} or unet predict {word} IMAGES?"
    for command, names in _OTHER_COMMANDS.items():
        if word in names.split():
            return f"did you mean unet {command}?"
    if near := difflib.get_close_matches(word[:50], known, 1):
        return f"did you mean unet {near[0]}?"
    return f"expected one of {', '.join(known)}"


def _check_is_no_option(word: str, options: Mapping[str, argparse.Action]) -> None:
    """Raise ValueError for an option in the form of a setting, such as resume=True."""
    key, _, value = word.partition("=")
    option = _find_option(f"--{key}", options)
    if option is not None:
        shown = f" {shorten(value)}" if options[option].nargs != 0 else ""
        raise ValueError(f"{shorten(key)}: is no setting, but an option: {option}{shown}")


def _find_option(name: str, options: Iterable[str]) -> str | None:
    """Return the option with this name, perhaps with other dashes, or of other tools."""
    plain = name.replace("_", "-").lower()
    for option in (plain, f"-{plain}"):
        if option in options:
            return option
    return next(
        (new for new, old in _OTHER_OPTIONS.items() if plain in old.split() and new in options),
        None,
    )


def _suggest_option(
    word: str,
    following: Sequence[str],
    command: str,
    actions: Mapping[str, Mapping[str, argparse.Action]],
) -> str:
    """Describe an unknown option; the word that follows may be its value."""
    name, equals, value = word.partition("=")
    where = f"{shorten(name)}: is no option of unet {command}"
    if name in _FILES.split():
        return f"{where}; give the file without an option, see unet {command} --help"
    if (option := _find_option(name, actions[command])) is not None:
        return f"{where}; did you mean {option}?"
    if near := difflib.get_close_matches(name[:50], actions[command], 1, cutoff=0.75):
        return f"{where}; did you mean {near[0]}?"
    if others := [other for other, options in actions.items() if name in options]:
        return f"{where}, but of unet {others[0]}"
    if not equals and following and not following[0].startswith("-"):
        value = following[0]
    try:
        hint = suggest(name.strip("-").replace("-", "_"), load_yaml(value), value or None)
    except ValueError:
        hint = ""
    if hint.startswith("did you mean") and command not in ("init", "export"):
        return f"{where}; settings have no dashes: {hint}"
    return f"{where}; see unet {command} --help"
