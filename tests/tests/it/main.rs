//! End-to-end tests.

mod plain;
