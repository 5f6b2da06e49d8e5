"""Representation: contrast sets, and extraction with diagnosis."""
