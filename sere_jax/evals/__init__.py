"""Evaluations of networks. They receive functions and parameters, never checkpoints, configs or objectives."""
