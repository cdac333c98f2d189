"""Who calls: virtual keys minted, stored as hashes, looked up through caches with a hard age."""
