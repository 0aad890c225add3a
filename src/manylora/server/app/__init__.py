"""The application of the edge: its routes and layers, its start and its end."""
