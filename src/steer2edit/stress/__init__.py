"""Stress tests of an edit: the contract of what holds in which condition, side effects, and the causal check."""
