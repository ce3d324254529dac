"""What masks are worth: Dice and IoU, outlines, calibration, intervals."""
