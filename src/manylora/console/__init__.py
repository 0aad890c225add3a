"""The console: pages for customers and operators at `/console`, which read and act through the HTTP API alone."""
