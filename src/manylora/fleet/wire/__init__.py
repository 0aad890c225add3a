"""The connection between an edge and the host of an engine: its bytes, its greeting and its messages."""
