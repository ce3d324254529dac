"""What is exported gives the masks of PyTorch, whatever the sizes."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pipeline.deployment.export import (
    Segmenter,
    as_batch,
    disagreement,
    open_onnx,
    open_openvino,
    trace,
)
from pipeline.models import create_model


def sizes(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


def balanced_segmenter(arch, frame, network_size):
    """With random weights, and logits that decide for the anatomy in half of the frame."""
    torch.manual_seed(0)
    segmenter = Segmenter(create_model(arch, 2), frame.shape[:2], network_size).eval()
    with torch.no_grad():
        margins = segmenter.margins(torch.from_numpy(as_batch(frame)))[0]
        for head, margin in zip(segmenter.network.heads, margins, strict=True):
            spread = margin.std().clamp(min=1e-3)
            head.classifier.weight /= spread
            head.classifier.bias /= spread
            head.classifier.bias[1] -= margin.median() / spread
    return segmenter


# Sizes are (height, width). Two pairs are explicit: a tall frame that no stride divides, and a
# network that sees less than the smallest size of any family. The first pair that is drawn is the
# smallest, 32 x 32.
@pytest.mark.parametrize("arch", ["segformer_b0", "mininetv2", "deeplabv3_efficientnet_lite0"])
@example(frame_size=(77, 45), network_size=None)
@example(frame_size=(47, 61), network_size=(5, 11))
@given(frame_size=sizes(32, 110), network_size=st.none() | sizes(1, 110))
@settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would export for minutes
    report_multiple_bugs=False,
)
def test_every_size_is_exported_exactly(tmp_path_factory, arch, frame_size, network_size):
    frame = np.random.default_rng(0).integers(0, 255, (*frame_size, 3)).astype(np.uint8)
    segmenter = balanced_segmenter(arch, frame, network_size or frame_size)
    file = tmp_path_factory.mktemp("export") / "network.onnx"
    trace(segmenter, torch.zeros(1, 3, *frame_size, dtype=torch.uint8), file)
    session, compiled = open_onnx(file), open_openvino(file)

    def onnx_masks(pixels):
        return session.run(None, {"frame": as_batch(pixels)})[0][0] > 0

    def openvino_masks(pixels):
        return compiled(as_batch(pixels))[0][0] > 0

    assert disagreement(segmenter, onnx_masks, [frame]) == 0
    assert disagreement(segmenter, openvino_masks, [frame]) == 0


@pytest.mark.parametrize("grad", [False, True])
def test_a_pixel_of_one_organ_is_the_arg_max_over_nothing_and_the_margins(grad):
    torch.manual_seed(3)
    network = create_model("mininetv2", 3).eval()
    segmenter = Segmenter(network, (60, 90), (48, 64), one_organ=True).eval()
    frame = torch.randint(0, 256, (1, 3, 60, 90), dtype=torch.uint8)
    with torch.set_grad_enabled(grad):
        masks = segmenter(frame)
        margins = segmenter.margins(frame)
    planes = torch.cat([torch.zeros(1, 1, 60, 90), margins], 1)
    winner = planes.argmax(1)
    for number in range(3):
        assert torch.equal(masks[:, number].long(), (winner == number + 1).long())
    assert 0 < masks.sum() < masks[:, 0].numel()
