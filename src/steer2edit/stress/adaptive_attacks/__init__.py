"""Attacks made for the model that is attacked."""
