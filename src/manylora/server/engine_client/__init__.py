"""The client of an engine: requests and events over a transport to a thread or to a process."""
