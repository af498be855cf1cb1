"""Speed against the peers, and the papers' tables."""
