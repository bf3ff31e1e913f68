"""Reading any checkpoint: as NumPy trees, as the start of a run, and as a backbone to call."""
