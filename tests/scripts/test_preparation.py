import csv
import errno
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import numpy as np
import prepare_oxford_pet
import prepare_voc
import pytest
import torchvision.datasets.utils
import yaml
from PIL import Image
from torchvision.datasets import OxfordIIITPet
from torchvision.datasets.voc import DATASET_YEAR_DICT

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def picture(mode: str, suffix: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.zeros((8, 8), np.uint8)).convert(mode)
    image.save(buffer, format="PNG" if suffix == ".png" else "JPEG")
    return buffer.getvalue()


IMAGE, MASK = picture("RGB", ".jpg"), picture("P", ".png")


def write_archive(path: Path, files: dict[str, bytes]) -> str:
    """Write a .tar or .tar.gz and return its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny archives where torchvision looks for those of 2012 and 2007."""
    root = tmp_path / "voc"
    for year, splits in (
        ("2012", {"train": ["2007_1", "2007_3"], "val": ["2007_2"]}),
        ("2007", {"train": ["000001"], "val": ["000002"]}),
    ):
        base = f"VOCdevkit/VOC{year}"
        files = {}
        for split, stems in splits.items():
            files[f"{base}/ImageSets/Segmentation/{split}.txt"] = "\n".join([*stems, ""]).encode()
            for stem in stems:
                files[f"{base}/JPEGImages/{stem}.jpg"] = IMAGE
                files[f"{base}/SegmentationClass/{stem}.png"] = MASK
        files[f"{base}/JPEGImages/not_segmented.jpg"] = IMAGE
        source = {
            "url": f"https://voc.invalid/{year}/original.tar",
            "filename": f"voc{year}.tar",
            "md5": write_archive(root / f"voc{year}.tar", files),
            "base_dir": base,
        }
        monkeypatch.setitem(DATASET_YEAR_DICT, year, source)
    return root


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny archives where torchvision looks for the pets'."""
    root = tmp_path / "pets"
    trainval = [f"Maine_Coon_{i}" for i in range(20)] + [f"pug_{i}" for i in range(10)]
    lists = {"trainval": trainval, "test": ["Maine_Coon_20", "pug_10"]}
    images, annotations = {}, {}
    for split, stems in lists.items():
        lines = [f"{stem} {1 + ('pug' in stem)} {1 + ('pug' in stem)} 1\n" for stem in stems]
        annotations[f"annotations/{split}.txt"] = "".join(lines).encode()
        for stem in stems:
            images[f"images/{stem}.jpg"] = IMAGE
            annotations[f"annotations/trimaps/{stem}.png"] = MASK
    folder = root / "oxford-iiit-pet"
    resources = [
        (f"https://pets.invalid/{name}", write_archive(folder / name, files))
        for name, files in (("images.tar.gz", images), ("annotations.tar.gz", annotations))
    ]
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
    return root


def read_rows(root: Path) -> list[dict[str, str]]:
    with (root / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_voc_is_unpacked_and_its_own_splits_are_listed(
    voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_voc.main([str(voc)]) == 0
    base = "VOCdevkit/VOC2012"
    assert (voc / "pairs.csv").read_text() == (
        "image,mask,split\n"
        f"{base}/JPEGImages/2007_1.jpg,{base}/SegmentationClass/2007_1.png,train\n"
        f"{base}/JPEGImages/2007_3.jpg,{base}/SegmentationClass/2007_3.png,train\n"
        f"{base}/JPEGImages/2007_2.jpg,{base}/SegmentationClass/2007_2.png,val\n"
    )
    for row in read_rows(voc):
        assert (voc / row["image"]).is_file()
        assert (voc / row["mask"]).is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        f"{voc / 'pairs.csv'}: 3 images (2 train, 1 val)",
        f"next: unet train configs/voc.yaml data.root={voc}",
    ]


def test_another_year_of_voc_replaces_the_list(voc: Path) -> None:
    assert prepare_voc.main([str(voc)]) == 0
    assert prepare_voc.main([str(voc), "--year", "2007"]) == 0
    assert [row["image"] for row in read_rows(voc)] == [
        "VOCdevkit/VOC2007/JPEGImages/000001.jpg",
        "VOCdevkit/VOC2007/JPEGImages/000002.jpg",
    ]
    with pytest.raises(SystemExit, match="2"):  # has no images to train on
        prepare_voc.main([str(voc), "--year", "2007-test"])


def test_a_tenth_of_each_breed_validates_and_the_test_list_is_kept_apart(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_oxford_pet.main([str(pets)]) == 0
    rows = read_rows(pets)
    stems = {
        split: [Path(row["image"]).stem for row in rows if row["split"] == split]
        for split in ("train", "val", "test")
    }
    assert Counter(stem.rpartition("_")[0] for stem in stems["val"]) == {"Maine_Coon": 2, "pug": 1}
    assert len({*stems["train"], *stems["val"]}) == 30
    assert stems["test"] == ["Maine_Coon_20", "pug_10"]
    for row in rows:
        stem = Path(row["image"]).stem
        assert row["image"] == f"oxford-iiit-pet/images/{stem}.jpg"
        assert row["mask"] == f"oxford-iiit-pet/annotations/trimaps/{stem}.png"
        assert (pets / row["image"]).is_file()
        assert (pets / row["mask"]).is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        f"{pets / 'pairs.csv'}: 32 images (27 train, 3 val, 2 test)",
        f"next: unet train configs/oxford_pet.yaml data.root={pets}",
    ]


def test_the_draw_is_the_same_whatever_the_order() -> None:
    draw = prepare_oxford_pet.draw_validation
    stems = [f"{breed}_{i}" for breed in ("pug", "Birman", "great_dane") for i in range(100)]
    assert draw(stems) == draw(stems[::-1])
    assert Counter(stem.rpartition("_")[0] for stem in draw(stems)) == {
        "pug": 10,
        "Birman": 10,
        "great_dane": 10,
    }


def test_a_second_run_mends_what_an_interrupted_one_left(pets: Path) -> None:
    assert prepare_oxford_pet.main([str(pets)]) == 0
    whole = (pets / "pairs.csv").read_bytes()
    (pets / "pairs.csv").unlink()
    annotations = pets / "oxford-iiit-pet" / "annotations"
    (annotations / "trainval.txt").write_text("pug_1 2 2 1\n")
    (annotations / "trimaps" / "pug_1.png").unlink()
    assert prepare_oxford_pet.main([str(pets)]) == 0
    assert (pets / "pairs.csv").read_bytes() == whole
    assert (annotations / "trimaps" / "pug_1.png").is_file()


def failure(main: Callable[[list[str]], int], root: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line in which a script says why it gave up."""
    assert main([str(root)]) == 2
    assert not (root / "pairs.csv").exists()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_without_network_every_missing_archive_is_named(
    pets: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, annotations = (
        (pets / "oxford-iiit-pet" / url.rpartition("/")[2], url, checksum)
        for url, checksum in OxfordIIITPet._RESOURCES
    )
    for missing in ([annotations], [images, annotations]):
        for path, _, _ in missing:
            path.unlink(missing_ok=True)
        wanted = " and ".join(f"{url} (MD5 checksum {md5}) as {path}" for path, url, md5 in missing)
        assert failure(prepare_oxford_pet.main, pets, capfd) == (
            f"{missing[0][0]}: could not be downloaded and unpacked (<urlopen error no network>), "
            f"expected {wanted}; run this again, or download the missing files by other "
            "means"
        )


def test_an_archive_with_another_checksum_is_refused(
    voc: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = voc / "voc2012.tar"
    path.write_bytes(path.read_bytes()[:-1])
    expected = "and the existing file is damaged, incomplete or another one"
    assert expected in failure(prepare_voc.main, voc, capfd)
    # Where there is a network, torchvision downloads it again and checks it.
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(
        torchvision.datasets.utils, "_urlretrieve", lambda _, path: Path(path).write_bytes(b"page")
    )
    error = failure(prepare_voc.main, voc, capfd)
    assert error.startswith(f"{path}: could not be downloaded and unpacked (File not found or corr")
    assert expected in error
    assert DATASET_YEAR_DICT["2012"]["url"] in error
    assert not (voc / "VOCdevkit").exists()


def test_an_archive_that_cannot_be_unpacked_is_refused(
    voc: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (voc / "voc2012.tar").write_bytes(b"no archive")
    DATASET_YEAR_DICT["2012"]["md5"] = md5(b"no archive", usedforsecurity=False).hexdigest()
    error = failure(prepare_voc.main, voc, capfd)
    assert "could not be downloaded and unpacked (file could not be opened successfully" in error
    assert "the existing file" not in error


def test_a_file_in_place_of_the_folder_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.touch()
    for script in (prepare_voc, prepare_oxford_pet):
        error = failure(script.main, path, capfd)
        assert error == f"{path}: is a file, expected a folder; give another name"
        inside = failure(script.main, path / "inside", capfd)
        assert inside.startswith(str(path))
        assert inside.endswith("Not a directory; check the path, its rights and the space")


def test_a_full_disk_is_told_from_a_missing_network(
    voc: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", no_space)
    error = failure(prepare_voc.main, voc, capfd)
    assert error == f"{voc}: No space left on device; check the path, its rights and the space"


def test_an_interruption_leaves_no_list(
    voc: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile, "copyfileobj", interrupt)
    assert prepare_voc.main([str(voc)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (voc / "pairs.csv").exists()


@pytest.mark.parametrize(
    ("name", "script"), [("voc", prepare_voc), ("oxford_pet", prepare_oxford_pet)]
)
def test_the_configs_read_what_the_scripts_write(
    name: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))["data"]
    prepared = []
    monkeypatch.setattr(script, "prepare", lambda *arguments: prepared.append(arguments))
    script.main([])
    root, _, _, config = prepared[0]
    assert (data["root"], config) == (root.as_posix(), f"configs/{name}.yaml")
    assert (data["csv"], data["validation"]) == ("pairs.csv", {"split": "val"})


def test_vocs_classes_are_its_palette_indices() -> None:
    data = yaml.safe_load((ROOT / "configs" / "voc.yaml").read_text(encoding="utf-8"))["data"]
    assert sorted(data["classes"].values()) == list(range(21))
    assert data["ignore"] == [255]
