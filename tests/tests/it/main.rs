//! End-to-end tests.

mod plain;
mod three_party;
