"""What every noun's rows share: tables, transactions, ids, cursors, leases, idempotency keys."""
