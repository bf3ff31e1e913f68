"""Heads that answer for every place of an image, and the backbones below them as one network."""
