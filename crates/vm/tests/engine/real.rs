//! With a real guest.
