"""Budgets of a tenant, a key or an adapter for each day or month of a zone: their sums, their alerts, their stop."""
