"""Figures of what networks have learned and of what they are fed."""
