"""The demonstration: the article's experiments, its claims, their tables and their figure."""
