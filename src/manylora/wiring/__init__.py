"""Composition: the concrete classes of an engine, an adapter store and a control plane, put together."""
