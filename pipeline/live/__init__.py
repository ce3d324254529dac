"""Live pictures: from a camera, a stream or a film to masks, the newest frame always first."""
