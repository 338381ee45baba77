//! What stands between the executor and the user: plan folders, sessions of three parties, files, reports.
//!
//! | code | meaning |
//! |---|---|
//! | E1001 | a plan folder lacks a file, or a file cannot be read |
//! | E1002 | a file of the plan folder is not the one the plan was made with |
//! | E1003 | a weights file does not hold what the plan needs |
//! | E1004 | the plan is not fit to be run |
//! | E1005 | a tensor file cannot be read or written |
//! | E1006 | an input is missing, unknown, or has the wrong type, size or range |
//! | E1007 | a request asks for more than the plan allows |
//! | E1008 | a peer's message during a session makes no sense |
//! | E1009 | the tokenizer is missing or fails |
//! | E1010 | measured and predicted costs differ |
//! | E1011 | a party's process on this machine cannot be started or ended early |
//! | E1012 | an option is not supported yet |
//! | E1013 | a report or other result cannot be written |
//! | E1014 | a fault of this program ended a session |
//! | E1015 | a party ended a session for a reason of its own |
//! | E1016 | a plan would show an input of the client's to the other parties |
//! | E1018 | an input leaves the ranges that the plan was made for |
//! | E1019 | a comparison found other results, or nothing to compare |
//! | E1020 | a file was changed while it was in use |
//! | E1021 | a step sends more than this party accepts |
//! | E1022 | what a model's folder says about generating and chatting cannot be used |
//! | E1030 | a serving party is ending |
//! | E1031 | a command to a running server fails |
//! | E1032 | metrics cannot be served |
//! | E1033 | service files cannot be written |
//! | E1034 | other sessions have the memory that one could need |
//! | E1035 | a session's sharing of the weights is an old one, and its time is over |
//! | E1040 | the gateway's options are wrong, or it cannot listen |
//! | E1050 | a file that a dealer made ahead of time was cut or changed, or is another kind of file |
//! | E1051 | it was made for another plan, session, party or sharing of the weights |
//! | E1052 | it was used before |
//! | E1053 | it was made for other sizes, or for fewer steps |
//! | E1054 | it cannot be written, or the list of what was used |

pub mod access;
pub mod chat;
pub mod client;
pub mod command;
pub mod comparison;
pub mod consent;
pub mod folder;
pub mod gateway;
pub mod held_file;
mod http;
pub mod inputs;
pub mod isolation;
pub mod local;
pub mod material;
pub mod measure;
pub mod party;
pub mod program;
pub mod region;
pub mod report;
pub mod request;
pub mod service;
pub mod session;
pub mod settings;
pub mod sharing;
pub mod talk;
pub mod template;
pub mod tensor_file;
pub mod test_data;
pub mod text;
pub mod uses;
pub mod verify;
pub mod weights;

pub use folder::PlanFolder;
pub use report::Report;
pub use request::Request;
