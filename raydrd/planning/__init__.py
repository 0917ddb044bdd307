"""What a run would cost on this machine: every stage sized by a walk, timed by a probe, compared with the truth later."""
