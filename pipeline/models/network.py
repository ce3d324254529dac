"""What all networks have in common: input statistics, padding, and the shape of their logits."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import MtkdError
from pipeline.models.initial_weights import InitialWeights

Statistics = tuple[float, float, float]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """One encoder and ``decoders`` binary decoders, or one decoder that does the work of all.

    A family implements :meth:`features` and :meth:`decode`; everybody calls the module itself.

    Attributes:
        architecture: the name that ``create_model`` was asked for.
        decoders: number of anatomies N, of which each has two logits.
        shared: whether one decoder gives the logits of all, 2 N; else each anatomy has its own.
        heads: the decoders: N, or one.
        anatomies: their names, once a checkpoint or a training run has given them; empty before.
        stride: frames are padded (bottom and right, edge repeated) to a multiple of this.
        smallest: and to at least this height and width.
        output_stride: pixels of the frame per cell of the logits.
        mean, std: statistics of the frames that the weights expect, RGB in 0..1.
        initial_weights: where the initial weights came from.
    """

    architecture: str
    heads: nn.ModuleList
    anatomies: tuple[str, ...] = ()
    stride: int
    smallest: int = 1
    output_stride: int
    mean: Statistics = IMAGENET_MEAN
    std: Statistics = IMAGENET_STD
    initial_weights: InitialWeights = InitialWeights()

    def __init__(self, decoders: int, *, shared: bool = False) -> None:
        super().__init__()
        self.decoders = decoders
        self.shared = shared

    def make_heads(self, make: Callable[[int], nn.Module]) -> nn.ModuleList:
        """A head of two logits for each anatomy, or a shared one of 2 N.

        Args:
            make: from a number of logits to a head.
        """
        if self.shared:
            return nn.ModuleList([make(2 * self.decoders)])
        return nn.ModuleList(make(2) for _ in range(self.decoders))

    def heads_of(self, selected: Sequence[int]) -> list[nn.Module]:
        """The heads that some anatomies need, for :meth:`per_anatomy`."""
        return list(self.heads) if self.shared else [self.heads[i] for i in selected]

    def per_anatomy(self, maps: Sequence[Tensor], selected: Sequence[int]) -> Tensor:
        """What :meth:`heads_of` gave, anatomy by anatomy.

        Args:
            maps: of each head, (B, 2 or 2 N, h, w).
            selected: positions of the anatomies.

        Returns:
            (B, len(selected), 2, h, w).
        """
        if not self.shared:
            return torch.stack(list(maps), dim=1)
        logits = maps[0].unflatten(1, (self.decoders, 2))
        return logits if list(selected) == list(range(self.decoders)) else logits[:, list(selected)]

    def features(self, frames: Tensor) -> Sequence[Tensor]:
        """What all decoders read, from frames (B, 3, H, W) with H and W multiples of ``stride``."""
        raise NotImplementedError

    def decode(self, features: Sequence[Tensor], selected: Sequence[int]) -> Tensor:
        """Logits of some anatomies, computed together.

        Args:
            features: what :meth:`features` gave.
            selected: positions of the anatomies.

        Returns:
            (B, len(selected), 2, H / output_stride, W / output_stride).
        """
        raise NotImplementedError

    def reference_heads(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """The decoders one by one as their library (or authors) wrote them.

        They have copies of this network's weights. Each maps :meth:`features` to logits (B, 2, h,
        w), or (B, 2 N, h, w) if it is shared. What :meth:`decode` computes together is tested and
        measured against these.
        """
        raise NotImplementedError

    def repeated(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a network with one decoder, repeated for each head of this network."""
        first = [name for name in weights if name.startswith("heads.0.")]
        others = {name: tensor for name, tensor in weights.items() if name not in first}
        copies = {}
        for decoder, name in product(range(len(self.heads)), first):
            copies[f"heads.{decoder}{name.removeprefix('heads.0')}"] = weights[name]
        return others | copies

    def forward(self, frames: Tensor, anatomies: Sequence[str | int] | None = None) -> Tensor:
        """Native logits of all decoders, or of some.

        Args:
            frames: (B, 3, H, W), normalised.
            anatomies: which decoders, by name or index; only these are computed. None = all.

        Returns:
            (B, N or len(anatomies), 2, ceil(H / output_stride), ceil(W / output_stride)).

        Raises:
            MtkdError: there is no such decoder.
        """
        h, w = (-(-n // self.output_stride) for n in frames.shape[-2:])
        features = self.features(padded(frames, self.stride, self.smallest))
        return self.decode(features, self.indices(anatomies))[..., :h, :w]

    def margins(self, frames: Tensor) -> Tensor:
        """Logit margins: by how much each anatomy's logit exceeds the background's.

        Args:
            frames: (B, 3, H, W) of 0..255.

        Returns:
            (B, N, h, w).
        """
        logits = self(normalise(frames, self))
        return logits[:, :, 1] - logits[:, :, 0]

    def frozen(self, *, wide: bool) -> nn.Module | None:
        """A copy for inference alone, from padded and normalised frames to logit margins.

        It maps (B, 3, H, W) to (B, N, h, w). None where a family has no form of its own:
        :class:`pipeline.models.frozen.Margins` does it for any network.

        Args:
            wide: all decoders at once, as suits a GPU; not all families know such a form.
        """
        return None

    def indices(self, anatomies: Sequence[str | int] | None) -> list[int]:
        """Positions of decoders that are given by name or position; all for None."""
        if anatomies is None:
            return list(range(self.decoders))
        positions: dict[str | int, int] = {i: i for i in range(self.decoders)}
        positions |= {name: i for i, name in enumerate(self.anatomies)}
        unknown = [str(anatomy) for anatomy in anatomies if anatomy not in positions]
        if unknown or not anatomies:
            decoders = ", ".join(self.anatomies) or f"0 to {self.decoders - 1}"
            raise MtkdError(
                f"no decoder for {', '.join(unknown) or 'an empty list'}; there: {decoders}"
            )
        return [positions[anatomy] for anatomy in anatomies]


def decoder_weights(network: Network, decoder: int) -> dict[str, Tensor]:
    """The weights of an anatomy's decoder, under the names of a head with two logits.

    Args:
        network: whose heads end in a convolution ``classifier``.
        decoder: position of the anatomy.
    """
    if not network.shared:
        return network.heads[decoder].state_dict()
    rows = slice(2 * decoder, 2 * decoder + 2)
    weights = network.heads[0].state_dict()
    return {k: v[rows] if k.startswith("classifier.") else v for k, v in weights.items()}


def padded(frames: Tensor, stride: int, smallest: int) -> Tensor:
    """Frames (B, 3, H, W) with their last row and column repeated.

    Height and width become multiples of ``stride``, and at least ``smallest``.
    """
    bottom, right = (max(-n % stride, smallest - n) for n in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, bottom), mode="replicate") if bottom or right else frames


def normalise(frames: Tensor, network: Network) -> Tensor:
    """Frames (B, 3, H, W) uint8 -> float32 with the statistics that the weights expect."""
    mean, std = (_on(frames.device, tuple(x)) for x in (network.mean, network.std))
    return ((frames.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@cache
def _on(device: torch.device, values: Statistics) -> Tensor:
    """(3, 1, 1), made once: on a GPU each copy from here would wait for all that it has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


def frame_by_frame(
    decode: Callable[[Sequence[Tensor]], Tensor], features: Sequence[Tensor]
) -> Tensor:
    """What all frames of a batch give, one after another: memory does not grow with their number.

    Args:
        decode: from the maps of one frame to its margins (1, N, h, w).
        features: [(B, C_i, h_i, w_i)].

    Returns:
        (B, N, h, w).
    """
    frames = zip(*(stage.split(1) for stage in features), strict=True)
    margins = [decode(frame) for frame in frames]
    return margins[0] if len(margins) == 1 else torch.cat(margins)


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, N, 2, h, w) on another grid.

    Area averaging when shrinking, bilinear (corners not aligned) when growing.

    Returns:
        (B, N, 2, *size) in the dtype of ``logits``.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    flat = logits.flatten(1, 2)
    if size[0] <= flat.shape[-2] and size[1] <= flat.shape[-1]:
        flat = F.interpolate(flat, size=size, mode="area")
    else:
        flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return flat.unflatten(1, logits.shape[1:3])
