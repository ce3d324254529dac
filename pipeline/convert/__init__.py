"""Conversion of other data sets, and predictions that an annotator can correct.

One module for each format (:mod:`pipeline.convert.formats` describes them). Its ``plan`` says which
frames would be converted, and what does not match. :mod:`pipeline.convert.writing` checks every
frame of a plan before it writes the first one. :mod:`pipeline.convert.exports` writes predictions
as COCO and nnU-Net folders.
"""
