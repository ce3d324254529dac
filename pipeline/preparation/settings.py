"""What is prepared, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.dsad import DataSet
from pipeline.label_maps import NAMED_BY
from pipeline.settings import Splits


@dataclass(frozen=True)
class PrepareSettings:
    """What is prepared, and how.

    Attributes:
        root: folder in DSAD's layout, or of complete label maps (:mod:`pipeline.label_maps`).
        others: more data sets, each with a name, which have some of the anatomies.
        anatomies: its sub-data sets, in the order of the decoders.
        splits: surgery ids of validation and test.
        image_size: (height, width). Frames are resized bilinearly, labels by nearest-exact; the
            aspect is not kept.
        unlabelled_root: folder ``<surgery>/*.png`` of frames without masks, of training surgeries,
            or None.
        least_training: training frames that every anatomy needs: batch norm needs two.
        linked: whether folders of anatomies and surgeries may be links; what is behind them can
            change unnoticed.
        named_by: what names the anatomies, for messages.
    """

    root: Path
    anatomies: Sequence[str]
    splits: Splits
    image_size: tuple[int, int]
    others: Sequence[DataSet] = ()
    unlabelled_root: Path | None = None
    least_training: int = 2
    linked: bool = True
    named_by: str = NAMED_BY

    @property
    def data_sets(self) -> list[DataSet]:
        """All data sets."""
        return [DataSet(self.root), *self.others]
