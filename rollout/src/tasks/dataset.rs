//! Tasks and corpora from files.
