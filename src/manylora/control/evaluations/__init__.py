"""Evaluations: the questions of a repository, and the runs that decide on the promotion of a version."""
