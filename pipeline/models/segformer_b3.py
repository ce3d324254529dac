"""SegFormer-B3 (Xie et al. 2021), the paper's teacher, with the all-MLP decoder of width 768."""

from functools import partial

from pipeline.models.segformer import SegFormer

build = partial(
    SegFormer,
    depths=(3, 4, 18, 3),
    widths=(64, 128, 320, 512),
    decoder_width=768,
    imagenet="nvidia/mit-b3",
)
