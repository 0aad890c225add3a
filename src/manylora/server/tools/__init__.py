"""Tools that a model may call: the forms in which bases write calls, their reading and their grammar."""
