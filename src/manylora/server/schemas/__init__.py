"""The models of requests' and replies' bodies, which read requests and make the OpenAPI document."""
