"""The control plane as a process: its opening, periodic work, backup and end."""
