"""One HTTP request and its reply: JSON fields, events of a stream, and known fields."""
