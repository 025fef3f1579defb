//! Durable file writes.
