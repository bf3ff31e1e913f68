"""Array operations without parameters: geometry, photometry, resizing, random keys."""
