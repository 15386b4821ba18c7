//! Single rules; whole schedules are in `tests/leases`.
