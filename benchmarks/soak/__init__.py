"""Minutes of all kinds of traffic at once, after which memory, resources and counts must be as before."""
