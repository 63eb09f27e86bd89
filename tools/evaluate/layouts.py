"""Where the official downloads of the data sets keep their files: data only, imported without cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders of images and masks inside one of `roots`, and how their names correspond.

    The mask of `<images>/x/name<image_ending>` is `<masks>/x/name<mask_ending>`, with any mask suffix if the ending has
    none. `listing`: a text file with the names of the images in the split. "{split}" is replaced by the split.
    """

    images: str
    masks: str
    image_ending: str = ""
    mask_ending: str = ""
    listing: str | None = None
    roots: tuple[str, ...] = ("",)

    @property
    def folders(self) -> tuple[str, str, str | None]:
        """Images, masks and listing."""
        return self.images, self.masks, self.listing

    @property
    def has_splits(self) -> bool:
        """Whether one download has several splits."""
        return "{split}" in f"{self.images} {self.listing}"


@dataclass(frozen=True, slots=True)
class Known:
    """A data set that the program knows: its layouts in the order they are tried, and its default split."""

    layouts: tuple[Layout, ...]
    split: str = "val"
    help: str = ""


_COCO = ("stuffthingmaps_trainval2017/val2017", "stuffthingmaps/val2017", "annotations/val2017", "annotation_val2017")
_BSDS = ("", "data", "BSDS500/data", "BSR/BSDS500/data")
KNOWN = {
    "coco-stuff-27": Known(
        tuple(Layout(images, masks, ".jpg", ".png") for images, masks in product(("val2017", "images/val2017"), _COCO)),
        help="COCO-Stuff-27 by the paper's protocol: val2017/ and stuffthingmaps_trainval2017/val2017/.",
    ),
    "coco-object": Known(
        tuple(Layout(images, masks, ".jpg", ".png") for images, masks in product(("val2017", "images/val2017"), _COCO)),
        help="COCO-Object, 80 classes, in the same folders.",
    ),
    "cityscapes-27": Known(
        (Layout("leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit.png", "_gtFine_labelIds.png"),),
        help="Cityscapes-27 by the paper's protocol: leftImg8bit/val/ and gtFine/val/.",
    ),
    "camvid": Known(
        (
            Layout("{split}", "{split}annot", roots=("", "CamVid")),
            Layout("images", "labels"),
            Layout("701_StillsRaw_full", "LabeledApproved_full", mask_ending="_L.png"),
            Layout("images", "labels", mask_ending="_L.png"),
        ),
        split="test",
        help="CamVid, 11 classes: test/ and testannot/, or the original pictures and colours.",
    ),
    "bsds500": Known(
        (
            Layout("images/{split}", "groundTruth/{split}", mask_ending=".mat", roots=_BSDS),
            Layout("images", "groundTruth", mask_ending=".mat"),
        ),
        split="test",
        help="BSDS500 against every annotator: images/test/ and groundTruth/test/ (BSDS500/data/).",
    ),
    "voc": Known(
        (
            Layout(
                "JPEGImages",
                "SegmentationClass",
                ".jpg",
                ".png",
                "ImageSets/Segmentation/{split}.txt",
                ("", "VOC2012", "VOCdevkit/VOC2012"),
            ),
        ),
        help="Pascal VOC, 21 classes: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/.",
    ),
    "context": Known(
        (
            Layout(
                "JPEGImages",
                "SegmentationClassContext",
                ".jpg",
                ".png",
                "ImageSets/SegmentationContext/{split}.txt",
                ("", "VOC2010", "VOCdevkit/VOC2010"),
            ),
        ),
        help="Pascal Context, 59 classes as index masks: JPEGImages/, SegmentationClassContext/.",
    ),
    "ade20k": Known(
        (Layout("images/{split}", "annotations/{split}", ".jpg", ".png", roots=("", "ADEChallengeData2016")),),
        split="validation",
        help="ADE20K, 150 classes: images/validation/ and annotations/validation/.",
    ),
    "folder": Known(
        tuple(Layout("images", masks) for masks in ("masks", "labels", "annotations", "groundTruth")),
        help="Any folder of images and masks of the same names: images/ and masks/, or --images and --masks.",
    ),
}
ALIASES = {"bsds": "bsds500", "coco": "coco-stuff-27", "cityscapes": "cityscapes-27"}
