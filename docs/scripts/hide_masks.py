"""Hide the masks of every second training frame of a data set, in two folders of links.

    python docs/scripts/hide_masks.py SOURCE LABELLED UNLABELLED VAL_AND_TEST_SURGERIES...

Then ``data.root: LABELLED`` and ``data.unlabelled_root: UNLABELLED`` show what frames without masks
are worth.
"""

from pathlib import Path

import shared

from pipeline.surgeries import surgery_id


def main(source: Path, labelled: Path, unlabelled: Path, val_and_test_surgeries: list[str]) -> None:
    """Link the frames of SOURCE into LABELLED.

    Every second one of a training surgery is linked into UNLABELLED instead.
    """
    for folder in (labelled, unlabelled):
        shared.refuse_existing(folder)
    frames = shared.labelled_frames(source)
    kept = {surgery_id(surgery) for surgery in val_and_test_surgeries}
    for number, frame in enumerate(frames):
        if surgery_id(frame.surgery) in kept or number % 2 == 0:
            shared.link_labelled(labelled, frame)
        else:
            shared.link(
                unlabelled / frame.surgery / f"{frame.anatomy}_{frame.image.name}", frame.image
            )


if __name__ == "__main__":
    shared.run(main)
