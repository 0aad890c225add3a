"""Tenants' files and responses, which the control plane keeps within quotas and for a time."""
