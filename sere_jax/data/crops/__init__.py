"""The random part of pre-training that the host does: crops, flips and masks."""
