"""One HTTP request and its reply, whole or as a stream of events."""
