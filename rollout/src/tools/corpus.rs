//! search and open.
