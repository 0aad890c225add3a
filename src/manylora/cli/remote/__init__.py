"""Commands that call a running server over HTTP."""
