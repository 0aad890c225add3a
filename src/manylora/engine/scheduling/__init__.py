"""The plan of a step: which positions of which sequences it computes, and in which KV blocks."""
