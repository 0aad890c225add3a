"""Banks: the memory in which adapters lie while rows use them, on each kind of device and on several ranks."""
