"""Attacks on weights and directions."""
