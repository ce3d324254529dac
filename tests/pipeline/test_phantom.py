"""The phantom: deterministic, in DSAD's layout, neither trivial nor hopeless."""

import cv2
import numpy as np
import pytest

from pipeline.errors import MtkdError
from pipeline.phantom import (
    ANATOMIES,
    LEAST,
    LEAST_OTHER,
    PhantomSettings,
    render,
    write_phantom,
)

SIZE = (128, 160)
THIN = ("inferior_mesenteric_artery", "intestinal_veins", "ureter")


def number(anatomy):
    return ANATOMIES.index(anatomy) + 1


def rendered(anatomy, surgery=1, frame=0, seed=1, difficulty=0.5):
    return render(anatomy, surgery, frame, seed=seed, size=SIZE, difficulty=difficulty)


@pytest.fixture(scope="module")
def views():
    return {(a, s): rendered(a, s) for a in ANATOMIES for s in (1, 2, 3, 4)}


def test_the_names_are_those_of_the_dresden_data_set(default_params):
    assert list(ANATOMIES) == default_params["data"]["anatomies"]


def test_a_frame_is_a_function_of_its_arguments():
    for one, other in zip(rendered("liver"), rendered("liver"), strict=True):
        np.testing.assert_array_equal(one, other)
    others = [
        rendered("liver", 2),
        rendered("liver", 1, 1),
        rendered("liver", seed=2),
        rendered("liver", difficulty=0.9),
    ]
    assert len({frame.tobytes() for frame, _ in [rendered("liver"), *others]}) == 5


def test_a_frame_does_not_depend_on_what_was_rendered_before():
    again = rendered("colon", 2)
    rendered("colon", 2, seed=7)
    np.testing.assert_array_equal(rendered("colon", 2)[0], again[0])


def test_frame_and_labels_have_the_given_size():
    for size in ((64, 64), (90, 101)):
        frame, labels = render("ureter", 1, 0, seed=1, size=size, difficulty=1.0)
        assert (frame.shape, frame.dtype) == ((*size, 3), np.uint8)
        assert (labels.shape, labels.dtype) == (size, np.uint8)


def test_the_filed_anatomy_is_visible(views):
    for (anatomy, surgery), (_, labels) in views.items():
        visible = (labels == number(anatomy)).mean()
        assert visible > 0.6 * LEAST.get(anatomy, LEAST_OTHER), (anatomy, surgery)


def test_other_anatomies_are_visible_and_unlabelled(views):
    others = [set(np.unique(labels)) - {0, number(a)} for (a, _), (_, labels) in views.items()]
    assert np.mean([len(numbers) for numbers in others]) >= 2
    assert set.union(*others) == set(range(1, len(ANATOMIES) + 1))


def test_nothing_is_labelled_outside_the_field_of_view(views):
    dark = [labels[frame.max(axis=2) == 0] for frame, labels in views.values()]
    assert sum(len(part) for part in dark) > 0
    assert not any(part.any() for part in dark)


def test_some_surgeries_fill_the_frame_and_some_show_the_rim():
    frames = [render("liver", s, 0, seed=1, size=(64, 80), difficulty=0.5)[0] for s in range(1, 13)]
    assert {bool(frame[:3, :3].any()) for frame in frames} == {True, False}


def test_thin_structures_are_thin_and_still_visible_at_half_resolution(views):
    for anatomy in THIN:
        for surgery in (1, 2, 3, 4):
            mask = (views[anatomy, surgery][1] == number(anatomy)).astype(np.uint8)
            depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
            assert 0.75 <= np.median(depth[mask > 0]) <= 3, (anatomy, surgery)


def test_surgeries_differ_in_light_and_tissue():
    livers = []
    for surgery in range(1, 7):
        frame, labels = rendered("liver", surgery)
        livers.append(frame[labels == number("liver")].mean(axis=0))
    assert np.std(livers, axis=0).max() > 8


def test_colour_alone_does_not_tell_organs_apart(views):
    """Mean colours of different organs lie closer together than one organ's in two surgeries."""
    means = {}
    for (anatomy, surgery), (frame, labels) in views.items():
        means[anatomy, surgery] = frame[labels == number(anatomy)].mean(axis=0)
    confused = 0
    for (anatomy, surgery), mean in means.items():
        rest = [
            (np.linalg.norm(mean - other), a) for (a, s), other in means.items() if s != surgery
        ]
        confused += min(rest)[1] != anatomy
    assert confused / len(means) > 0.3


def test_difficulty_spreads_the_surgeries():
    def spread(difficulty):
        return np.std(
            [rendered("stomach", s, difficulty=difficulty)[0].mean() for s in range(1, 9)]
        )

    assert spread(1.0) > spread(0.0)


def test_files_are_those_of_dsad_whatever_the_number_of_workers(tmp_path):
    settings = PhantomSettings(seed=3, surgeries=1, frames=1, size=(64, 80), label_maps=True)
    for name, workers in (("a", 1), ("b", 2)):
        seen = []
        written = write_phantom(
            tmp_path / name,
            settings,
            workers,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        assert written == len(ANATOMIES)
        assert seen == [(i, written) for i in range(1, written + 1)]
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.png")}
    assert files == {
        p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.png")
    }
    assert len(files) == 3 * len(ANATOMIES)
    for i, anatomy in enumerate(ANATOMIES, start=1):
        folder = tmp_path / "a" / anatomy / "01"
        mask = cv2.imread(str(folder / "mask00.png"), cv2.IMREAD_UNCHANGED)
        labels = cv2.imread(
            str(tmp_path / "a/multilabel" / anatomy / "01/label00.png"), cv2.IMREAD_UNCHANGED
        )
        np.testing.assert_array_equal(mask, (labels == i) * 255)
        frame = cv2.imread(str(folder / "image00.png"), cv2.IMREAD_UNCHANGED)
        assert (frame.shape, frame.dtype) == ((64, 80, 3), np.uint8)
        expected, _ = render(anatomy, 1, 0, seed=3, size=(64, 80), difficulty=0.5)
        np.testing.assert_array_equal(frame[..., ::-1], expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"surgeries": 0}, "at least one surgery"),
        ({"frames": 0}, "at least one surgery and one frame"),
        ({"size": (63, 100)}, "64x64"),
        ({"difficulty": 1.5}, "difficulty"),
        ({"difficulty": -0.1}, "difficulty"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, wrong, message):
    settings = PhantomSettings(**({"seed": 1, "surgeries": 1, "frames": 1} | wrong))
    with pytest.raises(MtkdError, match=message):
        write_phantom(tmp_path, settings)
    assert list(tmp_path.iterdir()) == []
