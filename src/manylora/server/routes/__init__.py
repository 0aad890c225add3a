"""The routes of the edge."""
