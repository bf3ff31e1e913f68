"""What a person sees of a run: progress, records, tables."""
