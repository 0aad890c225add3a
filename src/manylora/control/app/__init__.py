"""The application of the control plane: its routes put together, behind the layers that guard them."""
