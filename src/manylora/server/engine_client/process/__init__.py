"""The transport to an engine in a process of its own, and the program of that process."""
