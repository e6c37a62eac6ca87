"""Runs against real peers: what torch and PEFT trained and saved."""
