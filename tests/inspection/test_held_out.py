from pathlib import Path

import pytest
import yaml
from helpers import write_pairs

from unet.config.loader import config_from_dict
from unet.data.file_list import list_files
from unet.data.pairing import find_pairs
from unet.inspection.check import check_data
from unet.inspection.held_out import describe_split_lists
from unet.inspection.propose import propose

pytestmark = pytest.mark.usefixtures("workdir")


@pytest.mark.parametrize(
    ("name", "text", "stems"),
    [
        ("val.txt", "1\n3\n", "val.txt"),
        (
            "sets/valid.txt",
            "images/1.png masks/1.png\nimages/3.png masks/3.png\n",
            "sets/valid.txt",
        ),
        ("split.yaml", "train: [0, 2, 4, 5]\nval: ['1', '3']\n", "[1, 3, ...]"),
    ],
)
def test_lists_of_a_split_are_named_with_the_line_that_uses_them(
    data_root: Path, name: str, text: str, stems: str
) -> None:
    (data_root / name).parent.mkdir(exist_ok=True)
    (data_root / name).write_text(text)
    (data_root / "train.txt").write_text("0\n2\n4\n5\n")
    (data_root / "notes.txt").write_text("Scanned in May.\n")
    lines = describe_split_lists(
        data_root, list_files(data_root), find_pairs(data_root, ["images"], "masks")[0]
    )
    assert len(lines) == 2
    assert f"  # {name}" in lines[0]
    assert "lists 2 of the pairs" in lines[0]
    assert lines[1] == f"  # validation: {{stems: {stems}}}"
    assert "\n".join(lines) in propose(data_root, "mine")


def test_a_labelled_test_folder_is_named_with_the_command_that_uses_it(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / split, 6, seed=i)
    text = propose(tmp_path, "mine")
    assert "# 6 labelled test images are not used here." in text
    place = f"{tmp_path}/test"
    assert f"--images {place}/images --masks {place}/masks" in text


@pytest.mark.parametrize(
    ("image", "mask"), [("{}/images/{}.png", "{}/masks/{}.png"), ("{}/{}.png", "{}/{}_mask.png")]
)
def test_a_labelled_test_folder_is_no_case_among_others(
    tmp_path: Path, image: str, mask: str
) -> None:
    write_pairs(tmp_path / "drawn", 6)
    for place in ("north", "south", "west", "Test"):
        for i in range(6):
            for pattern, kind in ((image, "images"), (mask, "masks")):
                path = tmp_path / "data" / pattern.format(place, i)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((tmp_path / f"drawn/{kind}/{i}.png").read_bytes())
    text = propose(tmp_path / "data", "mine")
    config = config_from_dict({"name": "mine", **yaml.safe_load(text)})
    assert config.data.exclude == ("Test/*",)
    assert "# 6 labelled test images are not used here." in text
    assert "unet evaluate RUN/best.pt --images" in text
    assert f"{tmp_path}/data/Test" in text
    checked = check_data(config)
    assert len(checked.train_pairs) + len(checked.val_pairs) == 18
