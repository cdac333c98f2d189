"""Where answers to calls with an `Idempotency-Key` are kept: `memory` (one process), `redis` (all replicas)."""
