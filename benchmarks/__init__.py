"""Benchmarks: the asv suite, and ``python -m benchmarks.compare``, which times lowrank_core beside its peers.

Each case is written once, in ``cases.py`` and ``sweep_cases.py``, with the check of its answer; ``inputs.py`` makes
the inputs, ``timing.py`` measures. The asv suite tracks these cases over commits; ``compare.py`` prints the table of
ratios.
"""
