"""The demonstration: the article's experiments, their tables and their figure."""
