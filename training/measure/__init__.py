"""What the digits are worth: metrics, the real digits beside them, plots."""
