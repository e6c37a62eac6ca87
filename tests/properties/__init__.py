"""Theorems, on inputs that Hypothesis draws."""
