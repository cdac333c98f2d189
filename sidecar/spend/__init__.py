"""Money: exact prices and costs (`cost`, `prices`), and spend rows from journal to ledger (`recorder`)."""
