//! The workspaces that were seen to exist.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::domain::ids::WorkspaceId;

/// Beyond so many, all are forgotten: they are looked for again.
const MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct KnownWorkspaces(Mutex<HashSet<WorkspaceId>>);

impl KnownWorkspaces {
    #[must_use]
    pub fn contains(&self, workspace_id: WorkspaceId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&workspace_id)
    }

    pub fn insert(&self, workspace_id: WorkspaceId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(workspace_id);
    }
}
