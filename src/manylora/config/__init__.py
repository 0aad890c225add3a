"""Settings: their names, defaults and bounds, and the places they are read from."""
