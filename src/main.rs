//! The `visionscope` command line. See [`cli`].

use std::process::ExitCode;

use visionscope_billing::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
