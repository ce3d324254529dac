"""Checking a data set, all problems together, and writing it at one size.

:mod:`pipeline.preparation.prepare` does so; :mod:`pipeline.preparation.pictures` does it for one
picture. What is wrong is found by :mod:`pipeline.preparation.problems`, and what is legal and
suspicious by :mod:`pipeline.preparation.warnings`. :mod:`pipeline.prepared` reads what was written.
"""
