"""The client of an engine, over a transport to a thread or to a process."""
