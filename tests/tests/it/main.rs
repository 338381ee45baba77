//! End-to-end tests.

mod models;
mod plain;
mod quality;
