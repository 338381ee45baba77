//! Plans through the whole runtime: folders, sessions of three parties, processes, reports.

#[path = "app/backends.rs"]
mod backends;
#[path = "app/dealer_faults.rs"]
mod dealer_faults;
#[path = "app/dealt_window.rs"]
mod dealt_window;
#[path = "app/folders.rs"]
mod folders;
#[path = "app/gateway.rs"]
mod gateway;
#[path = "app/material.rs"]
mod material;
#[path = "app/measure.rs"]
mod measure;
#[path = "app/plans.rs"]
mod plans;
#[path = "app/processes.rs"]
mod processes;
#[path = "app/service.rs"]
mod service;
#[path = "app/service_files.rs"]
mod service_files;
#[path = "app/sessions.rs"]
mod sessions;
#[path = "app/strict_dealer.rs"]
mod strict_dealer;
#[path = "app/two_party.rs"]
mod two_party;
