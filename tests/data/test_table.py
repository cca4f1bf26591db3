from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.data.table import read_table


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / name)


def test_a_table_names_the_pairs(tmp_path: Path) -> None:
    write(tmp_path, "x/1.png", "y/a.png", "x/2.png", "y/b.png")
    (tmp_path / "pairs.csv").write_text(
        "split,image,mask,note\nval,x/1.png,y/a.png,good\ntrain,x/2.png,y/b.png,\n"
    )
    pairs, errors = read_table(tmp_path, "pairs.csv")
    assert not errors
    assert [(pair.stem, pair.split) for pair in pairs] == [("x/1", "val"), ("x/2", "train")]
    assert pairs[0].masks == (str(tmp_path / "y/a.png"),)


def test_a_file_occurs_in_a_table_once(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png", "a.png")
    (tmp_path / "pairs.csv").write_text("image,mask\n1.png,a.png\n2.png,a.png\n")
    _, errors = read_table(tmp_path, "pairs.csv")
    assert f"line 3: {tmp_path}/a.png occurs twice, expected every file once" in errors[0]
    (tmp_path / "pairs.csv").write_text("image,mask\n1.png,1.png\n")
    assert f"line 2: {tmp_path}/1.png occurs twice" in read_table(tmp_path, "pairs.csv")[1][0]
    (tmp_path / "pairs.csv").write_text("image,mask,mask\n1.png,a.png,b.png\n")
    with pytest.raises(ValueError, match="got a column twice in image, mask, mask"):
        read_table(tmp_path, "pairs.csv")
    (tmp_path / "pairs.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got the columns \(none\)"):
        read_table(tmp_path, "pairs.csv")


def test_errors_of_a_table_name_the_line(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "a.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image,mask\n1.png,a.png\n2.png,a.png\n1.png,\n1.png,a.png\n")
    _, errors = read_table(tmp_path, "pairs.csv")
    assert [error.removeprefix(f"{table}: line ") for error in errors] == [
        f"3: there is no file {tmp_path}/2.png; correct the path",
        "4: lacks an image or a mask; complete it",
        f"5: {tmp_path}/1.png has the same stem as {tmp_path}/1.png; remove or rename one",
    ]
    table.write_text("image;mask\n1.png;a.png\n")
    with pytest.raises(ValueError, match="got the columns image;mask, expected image and mask too"):
        read_table(tmp_path, "pairs.csv")
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as CSV"):
        read_table(tmp_path, "pairs.csv")
    table.write_text("image,mask\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_table(tmp_path, "pairs.csv")
    with pytest.raises(FileNotFoundError, match="there is no such table"):
        read_table(tmp_path, "other.csv")
