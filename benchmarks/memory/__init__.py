"""Measurements of the memory that the processes of a server take."""
