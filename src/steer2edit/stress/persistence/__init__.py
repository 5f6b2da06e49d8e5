"""What becomes of the gain when the weights are treated."""
