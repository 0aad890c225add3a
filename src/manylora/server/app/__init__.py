"""The application of the edge: its middleware and routes put together, its start and its end."""
