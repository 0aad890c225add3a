"""Pushes of trainers: their way into the server, and the push that a name means at each request."""
