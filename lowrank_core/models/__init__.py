"""Whole models as files: checkpoints, adapters, and what is in them."""
