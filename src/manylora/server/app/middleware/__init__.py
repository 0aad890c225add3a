"""The layers around the edge's routes. Each has one duty; `layered` sets their order."""
