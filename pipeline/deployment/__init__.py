"""Networks outside training: exported graphs, frames and videos in, masks and overlays out."""
