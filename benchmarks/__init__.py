"""Benchmarks: the asv suite, and ``python -m benchmarks.compare``, which times lowrank_core beside its peers.

Each case is written once, in a file named for its ``cases``, with the check of its answer; ``inputs.py`` makes
the inputs, ``timing.py`` measures. The asv suite tracks these cases over commits; ``compare.py`` prints the table of
ratios.
"""
