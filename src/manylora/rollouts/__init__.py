"""Rollouts: aliases that divide their requests between versions, and the draw of one version for each request."""
