//! End-to-end tests and rules of the repository.

mod plain;
mod repository;
mod three_party;
