"""Output for people and log files: progress, metrics, tables."""
