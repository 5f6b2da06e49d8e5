"""Whole runs: from a behaviour or a recipe to a tested edit, its figures and its report."""
