"""Tests of lowrank_core: one file a module, properties, and runs against real peers."""
