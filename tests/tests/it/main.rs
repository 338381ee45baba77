//! End-to-end tests and rules of the repository.

mod approximations;
mod bounds;
mod cases;
mod conformance;
mod damage;
mod decisions;
mod determinism;
mod documents;
mod faults;
mod lengths;
mod merged;
mod models;
mod operators;
mod plain;
mod quality;
mod real;
mod region;
mod repository;
mod rewrites;
mod sampling;
mod savings;
mod secrecy_of_files;
mod secrecy_of_frames;
mod tuned;
mod two_parties;
