"""Which example stands where, and how examples become batches."""
