"""The edge on Ray Serve: its ingress, its transport over calls, and the router of these calls."""
