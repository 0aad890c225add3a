"""The routes of the control plane, one file a subject, and the dependencies that they declare."""
