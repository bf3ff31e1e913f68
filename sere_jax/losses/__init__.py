"""Loss functions: arrays in, a scalar out."""
