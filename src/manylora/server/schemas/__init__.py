"""Bodies of requests and replies as models, from which they are read and the OpenAPI document is made."""
