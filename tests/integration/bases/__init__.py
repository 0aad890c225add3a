"""Several bases in one server: everything over HTTP, beside each base alone."""
