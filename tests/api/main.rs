//! The API as callers see it: a real server in this process, requests over TCP.

mod auth;
mod bad_input;
mod commands;
mod contract;
mod fake;
mod harness;
mod main_job;
mod service;
