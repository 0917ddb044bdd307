"""Faults injected for real: runs are killed at random moments and must end as if nothing had happened."""
