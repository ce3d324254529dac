"""What each format is: its layout, where that is documented, its licence, and what was verified.

Nothing heavy is imported here: the command line shows these texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

FIXTURES = (
    "Verified on small fixtures that were built from this documentation, and on no real file."
)


class Labels(StrEnum):
    """What the labels of a data set are written as."""

    MAPS = "maps"
    MASKS = "masks"
    DRAWN = "drawn"


class CholecMasks(StrEnum):
    """Which of CholecSeg8k's masks are read."""

    WATERSHED = "watershed"
    COLOUR = "colour"


class EndoscapesMasks(StrEnum):
    """Which of Endoscapes' annotations are read."""

    SEMANTIC = "semantic"
    COCO = "coco"


class ParquetConfig(StrEnum):
    """The configurations of DSAD's Hugging Face edition."""

    SINGLE_ORGAN = "single_organ"
    MULTI_ORGAN = "multi_organ"
    SINGLE_ORGAN_MULTI_RATER = "single_organ_multi_rater"
    MULTI_ORGAN_MULTI_RATER = "multi_organ_multi_rater"


@dataclass(frozen=True)
class Format:
    """A format that can be converted.

    Attributes:
        name: of the command.
        title: one sentence for the list of formats.
        layout: what SRC must hold.
        documented: where the layout is documented.
        surgery: where the surgery of a frame is taken from.
        licence: of the data; empty where it differs from set to set.
        url: of the data; empty where it differs from set to set.
        citation: what its authors ask to cite; empty where it differs from set to set.
        verified: on which files the reader was tried.
        packages: what must be importable.
    """

    name: str
    title: str
    layout: str
    documented: str
    surgery: str
    licence: str
    url: str
    citation: str
    verified: str
    packages: tuple[str, ...]

    @property
    def help(self) -> str:
        """The text of ``mtkd convert NAME --help``, in paragraphs."""
        parts = [
            self.title,
            f"SRC: {self.layout}",
            f"Surgery: {self.surgery}",
            f"Documented: {self.documented}",
            f"Licence: {self.licence or 'of the data set; say it with --licence.'}",
            self.verified,
            "A second run goes on where the first one stopped.",
        ]
        return "\n\n".join(parts)


_DSAD_CITATION = (
    "Carstens, M. et al. The Dresden Surgical Anatomy Dataset for Abdominal Organ Segmentation in "
    "Surgical Data Science. Scientific Data 10, 3 (2023). https://doi.org/10.1038/s41597-022-01719-2"
)

_ALL = (
    Format(
        name="cholecseg8k",
        title="CholecSeg8k: complete labels of 13 classes, of which black background becomes 0.",
        layout=(
            "video01/video01_00080/frame_80_endo.png, with frame_80_endo_watershed_mask.png or "
            "frame_80_endo_color_mask.png beside it."
        ),
        documented=(
            "arXiv:2012.12453 names the classes and no values. Values and colours are those of "
            "public readers that agree: mhjd/cholecseg8k-deeplabv3, opensurgicalvision/osv, "
            "we66530/Train_CholecSeg8k_with_DeeplabV3Res101_pytorch."
        ),
        surgery="the folder of the video, such as video01.",
        licence="CC BY-NC-SA 4.0",
        url="https://www.kaggle.com/datasets/newslab/cholecseg8k",
        citation=(
            "Hong, W.-Y. et al. CholecSeg8k: A Semantic Segmentation Dataset for Laparoscopic "
            "Cholecystectomy Based on Cholec80. arXiv:2012.12453 (2020)."
        ),
        verified=(
            "Verified on fixtures, which were also built from 41 real frames with their label "
            "maps. The original mask files were not at hand."
        ),
        packages=("PIL",),
    ),
    Format(
        name="dsad-multilabel",
        title="DSAD's multi-organ subset: one mask for each organ of a frame.",
        layout=(
            "02/image00.png, 02/mask00_stomach.png and so on, 02/weak_labels.csv; or a folder that "
            "holds this as multilabel/."
        ),
        documented=(
            "https://doi.org/10.1038/s41597-022-01719-2. The names of the masks are those of "
            "public readers that agree, such as jayanpatel789/DTx_OrganDetection_DSAD."
        ),
        surgery="the folder, such as 02.",
        licence="CC BY 4.0",
        url="https://doi.org/10.6084/m9.figshare.21702600",
        citation=_DSAD_CITATION,
        verified=FIXTURES,
        packages=("PIL",),
    ),
    Format(
        name="dsad-parquet",
        title="DSAD's Hugging Face edition: its Parquet files, which must be on this disk.",
        layout=(
            "Parquet files of one configuration, below a folder of its name. Columns: image, "
            "organ, a mask or one for each organ, the surgery and the frame."
        ),
        documented=(
            "the card of https://huggingface.co/datasets/nct-tso/dsad. Of it, the configurations "
            "and the column organ could be read here. Other columns are found by their names and "
            "types; --column says it where that fails."
        ),
        surgery="a column, or --surgery REGEX on the path of the image in the file.",
        licence="CC BY 4.0",
        url="https://huggingface.co/datasets/nct-tso/dsad",
        citation=_DSAD_CITATION,
        verified=(
            "Verified on fixtures only, whose columns are partly assumed: try it on one file first."
        ),
        packages=("PIL", "pyarrow"),
    ),
    Format(
        name="endoscapes",
        title="Endoscapes2023: the segmented frames, as semantic masks or COCO.",
        layout=(
            "semantic: train_seg/4_21725.jpg (val_seg, test_seg), semseg/4_21725.png and "
            "seg_label_map.txt. coco: annotation_coco.json beside the frames; semseg/ if it is "
            "there says which pixels are uncertain."
        ),
        documented=(
            "https://github.com/CAMMA-public/Endoscapes, README; 255 means uncertain "
            "(issue 5 there)."
        ),
        surgery="the number of the video, before the underscore of the file's name.",
        licence="CC BY-NC-SA 4.0",
        url="https://github.com/CAMMA-public/Endoscapes",
        citation=(
            "Mascagni, P. et al. Endoscapes, a critical view of safety and surgical scene "
            "segmentation dataset for laparoscopic cholecystectomy. arXiv:2312.12429. And for its "
            "masks: Alapatt, D. et al. Temporally Constrained Neural Networks. arXiv:2112.13815."
        ),
        verified=FIXTURES,
        packages=("PIL", "pycocotools"),
    ),
    Format(
        name="coco",
        title="COCO: polygons or run lengths, such as CVAT's export COCO 1.0.",
        layout=(
            "annotations/instances_*.json and images/, or one .json file. Each file_name is looked "
            "for in images/, images/<subset>/ and beside the file, or in --images."
        ),
        documented="https://cocodataset.org/#format-data; CVAT's page of its format COCO.",
        surgery="--surgery REGEX on the file_name; its one group is the surgery.",
        licence="",
        url="",
        citation="",
        verified=(
            "Verified on fixtures, and on what `mtkd predict` writes with `--as coco`. CVAT itself "
            "was not at hand."
        ),
        packages=("PIL", "pycocotools"),
    ),
    Format(
        name="nnunet",
        title="nnU-Net v2: a raw data set of 2-D PNG files.",
        layout="dataset.json, imagesTr/CASE_0000.png (RGB or grey) and labelsTr/CASE.png.",
        documented=(
            "https://github.com/MIC-DKFZ/nnUNet, documentation/reference/dataset-format.md and "
            "documentation/ignore_label.md."
        ),
        surgery="--surgery REGEX on the case; its one group is the surgery.",
        licence="",
        url="",
        citation="",
        verified=(
            "Verified on fixtures, and on what `mtkd predict` writes with `--as nnunet`. nnU-Net "
            "itself was not at hand."
        ),
        packages=("PIL",),
    ),
    Format(
        name="video",
        title="A video, or a folder of videos: frames without masks, so many per second.",
        layout="a video that FFmpeg can read, or a folder of such videos.",
        documented="https://pyav.basswood-io.com",
        surgery="--surgery REGEX on the name of the video; its one group is the surgery.",
        licence="",
        url="",
        citation="",
        verified=(
            "Verified on videos that the tests write. The test for frames outside of the body "
            "keeps all of 41 real frames; it was never tried on a real video."
        ),
        packages=("PIL", "av"),
    ),
)
FORMATS: Mapping[str, Format] = {each.name: each for each in _ALL}
