"""What runs: one module per DVC stage, file = stage = verb of the command line.

A stage reads its parameters, calls ``pipeline`` and ``cache``, and writes outputs and metrics.
"""
