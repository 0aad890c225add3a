"""Settings: their names, defaults and bounds, and the places from which they are read."""
