//! Deleting rows that nobody needs any more.

use async_trait::async_trait;

use super::cleaning::{Cleaning, Leftover};
use super::consumption::{Background, BackgroundTx as _};
use super::dialect::{Dialect, Parameters};
use super::error::{StoreError, with_answer_timeout};

#[async_trait]
impl<D: Background> Cleaning for D {
    async fn clean(&self, leftover: Leftover, limit: u32) -> Result<u64, StoreError> {
        let (limit, mut all) = (i64::from(limit), 0);
        for statement in D::Connection::cleaning_statements().of(leftover) {
            let parameters = Parameters::of(&limit);
            let parameters = match &leftover {
                Leftover::OldBuilds => parameters,
                Leftover::UsageHours(before)
                | Leftover::ResolvedLetters(before)
                | Leftover::Notifications(before)
                | Leftover::FinishedJobs(before)
                | Leftover::GoneWorkers(before) => parameters.and(before),
            };
            let deleted = with_answer_timeout(async {
                let mut tx = self.begin_background().await?;
                let deleted = tx.connection().list(&statement.text, parameters).await?.len();
                tx.commit().await?;
                Ok(deleted)
            })
            .await?;
            all += u64::try_from(deleted).unwrap_or(u64::MAX);
        }
        Ok(all)
    }
}
