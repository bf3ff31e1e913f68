"""Evaluations that train: one driver, and the protocols built on it."""
