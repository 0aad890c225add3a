"""The tiers: disk, host memory and device, each under a byte budget with pins."""
