"""Whether a strategy draws what it should."""

from hypothesis import Phase, find, settings

# To shrink an example takes longer than to find one.
UNSHRUNK = settings(max_examples=4000, deadline=None, derandomize=True, database=None, phases=[Phase.generate])


def drawn(strategy, condition):
    """Check that an example is drawn that meets a condition, and return it."""
    return find(strategy, condition, settings=UNSHRUNK)
