"""Linen modules: backbones, heads, and the network that answers requests."""
