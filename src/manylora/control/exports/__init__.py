"""Exports of usage to billing systems: hourly sums under ids that depend on the ledger alone."""
