"""Evaluations of frozen features, without training."""
