//! `visionscope openapi`: writes or compares the generated files.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::outcome::Outcome;
use crate::contract;
use crate::http::openapi;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Only compare. The exit status is 1 if a file is out of date.
    #[arg(long)]
    check: bool,
    /// The folder that holds `openapi/`.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    let folder = arguments.folder.join("openapi");
    let mut files = vec![(folder.join("openapi.json"), openapi::to_json(&openapi::openapi_document()))];
    files.extend(
        contract::documents()
            .into_iter()
            .map(|document| (folder.join("events").join(document.file_name), document.text)),
    );
    let mut is_current = true;
    for (path, text) in &files {
        if arguments.check {
            is_current &= compare(path, text);
        } else {
            write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    println!("{} generated files {}", files.len(), if arguments.check { "compared" } else { "written" });
    Ok(is_current)
}

fn compare(path: &Path, text: &str) -> bool {
    let is_current = std::fs::read_to_string(path).is_ok_and(|found| found == text);
    if !is_current {
        println!("{} is out of date: run `visionscope openapi`", path.display());
    }
    is_current
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)
}
