"""Engines on several machines behind one or more edges, over TCP, without a shared file system."""
