"""The files of a folder -> groups of files with the same place or ending, by their stems."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from os.path import splitext

_NUMBER = re.compile(r"\d+")
_MAX_FOLDERS = 12
"""Folders, or groups of similar folders, that are compared; the largest are."""
_MANY_DOUBLED = 0.15
"""Fraction of the files of a group from which on equal names are no mistake."""
_MOST_HITS = 1000
"""Stems that contain the same text; a number such as 1 is in nearly all of them."""

File = tuple[str, str, str]
"""Folder in the data set, stem and ending."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Files that a pattern describes."""

    pattern: str
    files: dict[tuple[str, str], str]  # `{case}`, empty without, and stem -> path
    num_doubled: int  # other files of the same case and stem

    def stems(self, case: str) -> "Stems":
        """Return the stems of a case."""
        if case not in self._stems:
            self._stems[case] = Stems(self._by_case.get(case, ()))
        return self._stems[case]

    @cached_property
    def _by_case(self) -> dict[str, list[str]]:
        stems: defaultdict[str, list[str]] = defaultdict(list)
        for case, stem in self.files:
            stems[case].append(stem)
        return stems

    @cached_property
    def _stems(self) -> dict[str, "Stems"]:
        return {}


class Stems(frozenset[str]):
    """Stems that can be searched."""

    @cached_property
    def _text(self) -> str:
        return "\n".join(["", *sorted(self), ""])

    def containing(self, part: str) -> Iterator[str]:
        """Yield stems that contain a text, at most `_MOST_HITS`."""
        end = 0
        for _ in range(_MOST_HITS):
            place = self._text.find(part, end)
            if place < 0:
                return
            start, end = (
                self._text.rindex("\n", 0, place + 1) + 1,
                self._text.index("\n", place + 1),
            )
            yield self._text[start:end]

    def has_slices(self, folder: str, name: str) -> bool:
        """Whether another stem in a folder differs from this one only in numbers."""
        like = folder + _NUMBER.sub("#", name)
        if like not in self._slices:
            alike = (
                folder + _NUMBER.sub("#", stem.removeprefix(folder)) == like
                for stem in self.containing(f"{folder}/")
            )
            self._slices[like] = sum(islice(filter(None, alike), 2)) > 1
        return self._slices[like]

    @cached_property
    def _slices(self) -> dict[str, bool]:
        return {}


def split_name(name: str) -> File:
    """Split the name of a file in the data set."""
    folder, _, file = name.rpartition("/")
    return folder, *splitext(file)  # noqa: PTH122 (ten times as fast as Path, for very many)


def group_by_folder(prefix: str, files: Sequence[File]) -> list[Group]:
    """Groups of single folders and of folders with similar paths."""
    by_folder: defaultdict[str, list[File]] = defaultdict(list)
    for file in files:
        by_folder[file[0]].append(file)
    numbered = Counter(_NUMBER.sub("*", folder) for folder in by_folder)
    similar = Counter(pattern for folder in by_folder for pattern in _with_star(folder))
    # The ways to group folders: each gives patterns with their files.
    ways: defaultdict[str | int, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    for folder, some in by_folder.items():
        pattern = _NUMBER.sub("*", folder)
        if numbered[pattern] > 1:
            ways["numbered"][pattern] += some
        else:
            ways["deep" if "/" in folder else "flat"][folder] += some
        if "/" in folder:
            ways["top"][folder.partition("/")[0]] += some
        for component, pattern in enumerate(_with_star(folder)):
            if similar[pattern] > 2:  # two folders are rather train and val
                ways[component][pattern] += some
    groups: dict[str, Group] = {}
    seen: set[tuple[File, File, int]] = set()
    for way in ways.values():
        for pattern in sorted(way, key=lambda one: -len(way[one]))[:_MAX_FOLDERS]:
            some = way[pattern]
            if (some[0], some[-1], len(some)) not in seen:
                seen.add((some[0], some[-1], len(some)))
                groups.update(
                    (group.pattern, group) for group in group_by_stem(prefix, pattern, some)
                )
    return [*groups.values()]


def _with_star(folder: str) -> list[str]:
    """A path with a star in place of one component, for each component."""
    parts = folder.split("/") if folder else []
    return ["/".join([*parts[:i], "*", *parts[i + 1 :]]) for i in range(len(parts))]


def group_by_stem(prefix: str, folder: str, files: Sequence[File]) -> Iterator[Group]:
    """Groups of all files of a folder, and of those with the same ending."""
    parts = folder.split("/") if folder else []
    stars = [i for i, part in enumerate(parts) if "*" in part]
    doubled = len(files) - len({file[1:] for file in files})
    if not stars or doubled <= _MANY_DOUBLED * len(files):
        yield from _group_by_ending(prefix, parts, files, slice(0), slice(len(parts), None))
        return
    # The folders tell equal names apart: as a part of the stem, or as a case.
    first, end = stars[0], stars[-1] + 1
    if end == len(parts):
        yield from _group_by_ending(prefix, parts[:first], files, slice(0), slice(first, None))
    # case07 is case{case}: no other folder is a case.
    one_star = end - first == 1 and parts[first].count("*") == 1
    case = parts[first].replace("*", "{case}") if one_star else "{case}"
    with_case = [*parts[:first], case, *parts[end:]]
    yield from _group_by_ending(prefix, with_case, files, slice(first, end), slice(0))


def _group_by_ending(
    prefix: str, parts: Sequence[str], files: Sequence[File], case: slice, above: slice
) -> Iterator[Group]:
    """Groups of files whose folders are in part a case, or a part of the stem."""
    affixes = next((part.split("{case}") for part in parts if "{case}" in part), ["", ""])
    endings = sorted({ending for *_, ending in files})
    for ending in ["", *endings] if len(endings) > 1 else [""]:
        group = {}
        some = [file for file in files if ending in ("", file[2])]
        for place, stem, suffix in some:
            folders = place.split("/") if place else []
            its_case = "/".join(folders[case]).removeprefix(affixes[0]).removesuffix(affixes[1])
            key = its_case, "/".join([*folders[above], stem])
            group[key] = f"{prefix}{'/'.join([*folders, stem])}{suffix}"
        # A few doubled files are errors to report; many show that endings tell files apart.
        if len(some) - len(group) <= _MANY_DOUBLED * len(some):
            pattern = "/".join([*parts, f"{{stem}}{ending}"])
            yield Group(pattern=pattern, files=group, num_doubled=len(some) - len(group))
