"""Search: many configurations on validation items, the front that comes of them once on held-out items."""
