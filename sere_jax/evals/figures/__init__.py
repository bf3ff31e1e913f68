"""Pictures of what a network has learned, and of what it is fed. Each module draws one figure of the paper's kind from arrays."""
