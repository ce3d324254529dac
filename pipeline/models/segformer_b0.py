"""SegFormer-B0 (Xie et al. 2021): smallest mix transformer, all-MLP decoder of width 256."""

from functools import partial

from pipeline.models.segformer import SegFormer

build = partial(
    SegFormer,
    depths=(2, 2, 2, 2),
    widths=(32, 64, 160, 256),
    decoder_width=256,
    imagenet="nvidia/mit-b0",
)
