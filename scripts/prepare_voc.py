"""Download the segmentation images of Pascal VOC with torchvision, and list them in pairs.csv.

The splits are those of VOC: train and val. The images stay where the archive has them; pairs.csv
names them relative to the folder.
"""

import sys
from collections.abc import Iterator, Sequence

from preparation import Archive, folder_parser, prepare
from torchvision.datasets import VOCSegmentation
from torchvision.datasets.voc import DATASET_YEAR_DICT


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the folder and return the exit code."""
    parser = folder_parser(__doc__, "data/voc")
    parser.add_argument(
        "--year",
        choices=[year for year in DATASET_YEAR_DICT if year.isdigit()],  # others are test sets
        default="2012",
        help="year of the challenge (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    root, year = arguments.root, arguments.year

    def rows() -> Iterator[tuple[str, str, str]]:
        for split in ("train", "val"):
            pairs = VOCSegmentation(root, year=year, image_set=split)
            for image, mask in zip(pairs.images, pairs.masks, strict=True):
                yield image, mask, split

    source = DATASET_YEAR_DICT[year]
    archive = Archive(path=root / source["filename"], url=source["url"], md5=source["md5"])
    return prepare(root, [archive], rows, "configs/voc.yaml")


if __name__ == "__main__":
    sys.exit(main())
