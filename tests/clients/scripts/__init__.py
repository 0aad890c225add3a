"""Scripts that run in the environments of clients, one file a client. They assert what the clients expect."""
