"""Several ranks: their messages, their loss, and the equality of their results with those of one process."""
