"""Responses of OpenAI: their routes, their form, their events, and those that run without a waiting caller."""
