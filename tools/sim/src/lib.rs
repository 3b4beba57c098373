//! The seeded simulator: whole clusters on virtual time in one process.
