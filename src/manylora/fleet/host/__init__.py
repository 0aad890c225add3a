"""The host of one engine, to which several edges connect."""
