"""SegFormer (Xie et al. 2021): N all-MLP decoders on one mix transformer.

The encoder is the Transformers library's; the decoders are in ``segformer_head``.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.utils.hub import cached_file

from pipeline.errors import MtkdError
from pipeline.models.initial_weights import (
    SAME_ARCHITECTURE,
    InitialWeights,
    copy_weights,
    read_json,
    read_statistics,
    require_architecture,
    unavailable,
)
from pipeline.models.network import Network, decoder_weights
from pipeline.models.segformer_head import FrozenHead, Head, WideHead, decode_in_strips

# What the shapes of the weights do not show.
ARCHITECTURE = (
    "depths",
    "num_attention_heads",
    "sr_ratios",
    "strides",
    "patch_sizes",
    "hidden_act",
)


class SegFormer(Network):
    """Mix transformer encoder; N decoders, each with its own projections, fusion and classifier."""

    stride = 4
    output_stride = 4
    smallest = 32  # the attention of the first stage reduces its quarter of the frame by 8

    def __init__(
        self,
        decoders: int,
        pretrained: str | None,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        decoder_width: int,
        imagenet: str,
        shared: bool = False,
    ) -> None:
        super().__init__(decoders, shared=shared)
        self.config = SegformerConfig(
            depths=list(depths),
            hidden_sizes=list(widths),
            decoder_hidden_size=decoder_width,
            num_labels=2,
        )
        self.encoder = SegformerModel(self.config)
        self.heads = self.make_heads(partial(Head, widths, decoder_width))
        if pretrained is not None:
            _load(self, pretrained, imagenet if pretrained == "imagenet" else pretrained)

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """The four stages [(B, C_i, h_i, w_i)], finest first."""
        return cast(Sequence[Tensor], self.encoder(frames, output_hidden_states=True).hidden_states)

    def decode(self, features: Sequence[Tensor], selected: Sequence[int]) -> Tensor:
        """As :meth:`Network.decode`."""
        heads = cast(list[Head], self.heads_of(selected))
        if self.training or torch.is_grad_enabled() or features[0].device.type != "cpu":
            stages = [stage.contiguous(memory_format=torch.channels_last) for stage in features]
            return self.per_anatomy([head(stages) for head in heads], selected)
        maps = decode_in_strips([FrozenHead(head) for head in heads], features)
        return self.per_anatomy(maps, selected)

    def frozen(self, *, wide: bool) -> nn.Module:
        """As :meth:`Network.frozen`."""
        return FrozenSegFormer(self, wide=wide)

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """As :meth:`Network.reference_heads`: decoders of the Transformers library."""
        return [_reference_head(self.config, head.state_dict()) for head in self.heads]


class FrozenSegFormer(nn.Module):
    """As :meth:`SegFormer.frozen` says."""

    def __init__(self, network: SegFormer, *, wide: bool) -> None:
        super().__init__()
        heads = [FrozenHead(cast(Head, head), margin=True) for head in network.heads]
        self.encoder = copy.deepcopy(network.encoder)
        self.heads = WideHead(heads) if wide else nn.ModuleList(heads)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> margins (B, N, H / 4, W / 4)."""
        stages = self.encoder(frames, output_hidden_states=True).hidden_states
        if isinstance(self.heads, WideHead):
            return cast(Tensor, self.heads(stages))
        return torch.cat(decode_in_strips(cast(Any, list(self.heads)), stages), dim=1)


def _load(network: SegFormer, source: str, checkpoint: str) -> None:
    """Take encoder and, if there is one, decoder of a Transformers checkpoint.

    The decoder goes to each of ours; classifiers stay new.

    Raises:
        MtkdError: there is no such checkpoint, one of another architecture, or one that lacks
            weights.
    """
    what = f"pretrained: '{source}'"
    reference = _read(network, source, checkpoint)
    expected = {name: getattr(network.config, name) for name in ARCHITECTURE}
    require_architecture(reference.config.to_dict(), expected, what)
    # What a file lacks, Transformers fills with random numbers.
    if missing := sorted(name for name in reference.missing if ".classifier." not in name):
        raise MtkdError(
            f"{what}: lacks {len(missing)} tensors, {missing[0]} first; {SAME_ARCHITECTURE}"
        )
    copy_weights(network.encoder, reference.encoder.state_dict(), what)
    loaded = {f"encoder.{name}" for name in network.encoder.state_dict()}
    if reference.decoder is not None:
        loaded |= _copy_decoder(network, reference.decoder, source)
    preprocessing = read_json(reference.statistics) if reference.statistics else {}
    network.mean = read_statistics(preprocessing, "image_mean", network.mean, what)
    network.std = read_statistics(preprocessing, "image_std", network.std, what)
    network.initial_weights = InitialWeights.of(network, source, loaded)


@dataclass(frozen=True)
class _Reference:
    """A checkpoint of the Transformers library.

    Attributes:
        config: its architecture.
        encoder: its mix transformer.
        decoder: its decode head, if it has one.
        missing: names of tensors that its file lacks.
        statistics: the JSON file of its preprocessing, if it has one.
    """

    config: SegformerConfig
    encoder: nn.Module
    decoder: nn.Module | None
    missing: Collection[str]
    statistics: Path | None


def _read(network: SegFormer, source: str, checkpoint: str) -> _Reference:
    """Read a checkpoint from the hub or a folder.

    Raises:
        MtkdError: there is none, or it is not a SegFormer.
    """
    expected = (
        f"a SegFormer with depths {network.config.depths} and widths {network.config.hidden_sizes}"
    )
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if not isinstance(config, SegformerConfig):
            raise ValueError(f"it is a {config.model_type}")
        has_decoder = "SegformerForSemanticSegmentation" in (config.architectures or [])
        kind: Any = SegformerForSemanticSegmentation if has_decoder else SegformerModel
        model, loading = kind.from_pretrained(checkpoint, output_loading_info=True)
        statistics = cached_file(
            checkpoint, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unavailable(source, expected, error) from error
    return _Reference(
        config,
        model.segformer if has_decoder else model,
        model.decode_head if has_decoder else None,
        loading["missing_keys"],
        Path(statistics) if statistics else None,
    )


def _copy_decoder(network: SegFormer, reference: nn.Module, source: str) -> set[str]:
    """Copy the reference's decoder, without its classifier, to each of ours.

    Returns:
        The names of what was loaded.
    """
    weights = {k: v for k, v in head_weights(reference).items() if not k.startswith("classifier.")}
    loaded = set()
    for decoder, head in enumerate(network.heads):
        classifier = {k: v for k, v in head.state_dict().items() if k.startswith("classifier.")}
        copy_weights(head, weights | classifier, f"pretrained: '{source}', decoder")
        loaded |= {f"heads.{decoder}.{name}" for name in weights}
    return loaded


def head_weights(reference: Any) -> dict[str, Tensor]:
    """The weights of a Transformers ``SegformerDecodeHead`` under the names of :class:`Head`."""
    linears = [m for m in reference.modules() if isinstance(m, nn.Linear)]
    parts = {
        **{f"projections.{i}": linear for i, linear in enumerate(linears)},
        "fuse": reference.linear_fuse,
        "norm": reference.batch_norm,
        "classifier": reference.classifier,
    }
    weights = {}
    for name, part in parts.items():
        for key, value in part.state_dict().items():
            weights[f"{name}.{key}"] = value
    return weights


def to_transformers(network: SegFormer, decoder: int = 0) -> SegformerForSemanticSegmentation:
    """Encoder and one decoder as the Transformers library knows them.

    Their logits (B, 2, h, w) are equal to ours.
    """
    model = SegformerForSemanticSegmentation(network.config)
    model.segformer.load_state_dict(network.encoder.state_dict())
    model.decode_head = _reference_head(network.config, decoder_weights(network, decoder))
    return model.train(network.training)


def _reference_head(config: SegformerConfig, weights: dict[str, Tensor]) -> Any:
    of_head = copy.copy(config)
    of_head.num_labels = len(weights["classifier.bias"])
    reference = SegformerDecodeHead(of_head)
    for name, tensor in head_weights(reference).items():
        tensor.copy_(weights[name])  # a state dict's tensors share the module's memory
    return reference
