"""What HTTP needs and every route shares: headers, bodies, ranges, digests, CSV, middleware."""
