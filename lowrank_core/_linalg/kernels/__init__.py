"""Every Numba kernel: arrays in, arrays out, no validation, no allocation in hot loops; one file for each question.

A kernel's helpers stand in its own file, because Numba's on-disk cache does not notice an edited helper in another.
What several share, ``compiling``, ``simd``, ``sizes``, ``narrow``, ``dqds`` and ``householder``, is the exception:
after an edit there, delete ``__pycache__``. An installation writes every file anew, which the cache does notice.
Every kernel is called with one set of types only (C-contiguous arrays, each of them always writable, or read-only as
`values.read_only` makes it): processes that start cold together then write the same code under the same name.
"""
