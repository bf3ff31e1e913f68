"""The only place that opens an image."""
