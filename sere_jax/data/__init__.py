"""From files to batches of encoded images, crops and annotations."""
