"""Whether the components that an edit names carry the behaviour."""
