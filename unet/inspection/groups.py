"""The pairs -> a random split that keeps the images of one folder or stack together."""

import re
from collections.abc import Sequence

from unet.data.pairing import Pair
from unet.inspection.find_files import quote

# What the stems of one patient's images may have in common: folders, or a part of the name, which
# is less certain.
GROUPS = (
    ("^[^/]+(?=/)", "folder"),
    ("^[^/]+/[^/]+(?=/)", "folder"),
    ("^[^_/.]+(?=[_/.])", "the start of the name"),
    ("^[^/0-9]*([0-9]+)[^/]*$", "the first number in the name"),
)


def propose_split(pairs: Sequence[Pair]) -> list[str]:
    """Return the lines of a random split, by groups if folders or names seem to be such.

    Neighbouring pages of a stack look alike: they stay together, or a block of one is held out.
    """
    if len(pairs) == 1:
        return ["  validation: none  # there is one image"]
    if pairs[0].page is not None:
        stacks = {pair.images for pair in pairs}
        if len(stacks) > 1:
            return [
                f"  # A random split of {len(stacks)} stacks: the pages of one stay together.",
                "  validation: {fraction: 0.2, group: '^[^#]+'}",
            ]
        held_out = [quote(pair.stem) for pair in pairs[-max(1, min(len(pairs) // 5, 100)) :]]
        return [
            "  # The last pages of the stack, as neighbouring pages look alike.",
            f"  validation: {{stems: [{', '.join(held_out)}]}}",
        ]
    lines = [
        "  # A random split. Images of one patient, slide or film must not be in both training and",
        "  # validation, or the scores are too high: set group: REGULAR EXPRESSION of what their",
        "  # stems have in common, or list the validation images in stems: [...].",
    ]
    for pattern, what in GROUPS:
        found = [re.search(pattern, pair.stem) for pair in pairs]
        groups = {match[match.re.groups] for match in found if match}
        if not all(found) or not 3 <= len(groups) < len(pairs):
            continue
        group = f"validation: {{fraction: 0.2, group: '{pattern}'}}"
        lines.append(f"  # {len(groups)} groups by {what}, such as {min(groups)}.")
        if what == "folder":
            return [*lines, f"  {group}"]
        lines[-1] += " To keep each of them together:"
        lines.append(f"  # {group}")
        break
    return [*lines, "  validation: {fraction: 0.2}"]
