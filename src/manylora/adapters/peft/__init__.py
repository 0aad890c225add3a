"""PEFT's file format: the config's fields, the tensors' names, and the values of a weights file."""
