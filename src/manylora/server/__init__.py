"""The HTTP edge and the boundary to the engine process."""
