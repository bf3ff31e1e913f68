"""Names and layouts of other people's checkpoints, on NumPy trees."""
