"""Turn an activation-steering vector into a persistent, component-level weight edit (arXiv 2602.09870)."""
