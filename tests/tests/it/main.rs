//! End-to-end tests.

mod determinism;
mod models;
mod plain;
mod quality;
mod savings;
mod secrecy_of_files;
