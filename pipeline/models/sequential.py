"""Sequential decoders: what the batched ones are measured against."""

from torch import Tensor, nn

from pipeline.models.network import Network


class SequentialDecoders(nn.Module):
    """A network whose decoders run one after another, as their library wrote them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.decoders = range(network.decoders)
        self.mean = network.mean
        self.std = network.std
        self.heads = nn.ModuleList(
            head for head in network.reference_heads() if isinstance(head, nn.Module)
        )
        del network.heads

    def forward(self, frames: Tensor) -> Tensor:
        """As :meth:`Network.forward`, for sizes that the network takes as they are."""
        features = self.network.features(frames)
        maps = [head(features) for head in self.heads]
        return self.network.per_anatomy(maps, self.decoders)

    margins = Network.margins
