"""The fleet on Ray Serve: engines as replicas, edges as the ingress, and the commands that start and show both."""
