//! The local policy: both seats drawn by one engine, each seat under its own weight set.
