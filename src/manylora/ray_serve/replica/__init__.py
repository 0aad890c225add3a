"""A replica on Ray Serve: the actor, its engine behind calls of edges, and its load."""
