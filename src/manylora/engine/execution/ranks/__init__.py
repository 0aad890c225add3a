"""Several ranks that compute each step together: the commands from rank 0 to the others, and their processes."""
