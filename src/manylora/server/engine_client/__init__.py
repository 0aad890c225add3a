"""The client of the engine: requests and events over a link to a thread or a process."""
