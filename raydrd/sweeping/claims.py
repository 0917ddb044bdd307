"""Who makes what, among trials that share a store: leases that pass on when their holder is gone. Pure, but for its clock."""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE_SECONDS = 15.0  # without a sign of life; then somebody else may make it
RENEW_SECONDS = 2.0


@dataclass
class Leases:
    """Keys and their holders. Times are of one clock, in seconds."""

    seconds: float = LEASE_SECONDS
    held: dict[str, str] = field(default_factory=dict)  # key -> owner
    alive: dict[str, float] = field(default_factory=dict)  # owner -> when it was last heard of

    def take(self, key: str, owner: str, now: float) -> bool:
        """Whether the key is the owner's now."""
        self.alive[owner] = now
        holder = self.held.get(key, owner)
        if holder != owner and now - self.alive[holder] < self.seconds:
            return False
        self.held[key] = owner
        return True

    def renew(self, owner: str, now: float) -> None:
        """A sign of life."""
        self.alive[owner] = now

    def release(self, key: str, owner: str) -> None:
        """The key is free; nothing happens where it has passed to another owner."""
        if self.held.get(key) == owner:
            del self.held[key]
