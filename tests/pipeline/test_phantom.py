"""The phantom: deterministic, in DSAD's layout, partially labelled, and neither trivial nor hopeless."""

import cv2
import numpy as np
import pytest
from pipeline.errors import MtkdError
from pipeline.phantom import ANATOMIES, LEAST, LEAST_OTHER, render, write_phantom

SIZE = (128, 160)


def shown(anatomy, surgery=1, frame=0, seed=1, difficulty=0.5):
    return render(anatomy, surgery, frame, seed=seed, size=SIZE, difficulty=difficulty)


@pytest.fixture(scope="module")
def views():
    return {(a, s): shown(a, s) for a in ANATOMIES for s in (1, 2, 3)}


def test_the_names_are_those_of_the_dresden_data_set(default_params):
    assert list(ANATOMIES) == default_params["data"]["anatomies"]


def test_a_frame_is_a_function_of_its_arguments():
    for one, other in zip(shown("liver"), shown("liver"), strict=True):
        np.testing.assert_array_equal(one, other)
    others = [shown("liver", 2), shown("liver", 1, 1), shown("liver", seed=2), shown("liver", difficulty=0.9)]
    assert len({frame.tobytes() for frame, _ in [shown("liver"), *others]}) == 5


def test_the_filed_anatomy_is_visible(views):
    for (anatomy, _), (_, labels) in views.items():
        visible = (labels == ANATOMIES.index(anatomy) + 1).mean()
        assert visible > 0.6 * LEAST.get(anatomy, LEAST_OTHER)


def test_other_anatomies_are_visible_and_unlabelled(views):
    others = [len(set(np.unique(labels)) - {0, ANATOMIES.index(a) + 1}) for (a, _), (_, labels) in views.items()]
    assert np.mean(others) >= 2
    seen = {a: 0 for a in ANATOMIES}
    for (own, _), (_, labels) in views.items():
        for i in set(np.unique(labels)) - {0}:
            seen[ANATOMIES[i - 1]] += ANATOMIES[i - 1] != own
    assert all(seen.values()), seen


def test_nothing_is_labelled_outside_the_field_of_view(views):
    dark = np.concatenate([labels[frame.max(2) == 0] for frame, labels in views.values()])
    assert len(dark) > 0
    assert (dark > 0).mean() < 0.01


def test_thin_structures_are_thin(views):
    for anatomy in ("ureter", "inferior_mesenteric_artery", "intestinal_veins"):
        for surgery in (1, 2, 3):
            mask = (views[anatomy, surgery][1] == ANATOMIES.index(anatomy) + 1).astype(np.uint8)
            depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
            assert np.median(depth[mask > 0]) <= 3


def test_surgeries_differ_in_light_and_tissue(views):
    livers = [frame[labels == ANATOMIES.index("liver") + 1].mean(0) for frame, labels in (shown("liver", s) for s in range(1, 7))]
    assert np.std(livers, axis=0).max() > 8


def test_files_are_those_of_dsad_whatever_the_number_of_workers(tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        write_phantom(tmp_path / name, seed=3, surgeries=1, frames=1, size=(64, 80), label_maps=True, workers=workers)
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.png")}
    assert files == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.png")}
    assert len(files) == 3 * len(ANATOMIES)
    for i, anatomy in enumerate(ANATOMIES, start=1):
        folder = tmp_path / "a" / anatomy / "01"
        mask = cv2.imread(str(folder / "mask00.png"), cv2.IMREAD_UNCHANGED)
        labels = cv2.imread(str(tmp_path / "a/multilabel" / anatomy / "01/label00.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, (labels == i) * 255)
        assert cv2.imread(str(folder / "image00.png"), cv2.IMREAD_UNCHANGED).shape == (64, 80, 3)


@pytest.mark.parametrize(
    "wrong", [{"surgeries": 0}, {"frames": 0}, {"size": (63, 100)}, {"difficulty": 1.5}, {"difficulty": -0.1}]
)
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(MtkdError):
        write_phantom(tmp_path, **({"seed": 1, "surgeries": 1, "frames": 1} | wrong))
    assert list(tmp_path.iterdir()) == []
