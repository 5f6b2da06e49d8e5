"""Static attacks: requests written in another way, by families or from published files."""
