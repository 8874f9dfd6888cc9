//! The routes, one file per resource. A function's name is its operation id: verb, then resource.
//!
//! Each operation declares the problems that are specific to it. [`super::openapi`] adds the shared ones to the
//! document.

use utoipa_actix_web::service_config::ServiceConfig;

pub mod analytics;
mod as_of;
pub mod audit;
mod charge;
pub mod credits;
pub mod dead_letters;
pub mod events;
pub mod grants;
pub mod health;
mod history;
pub mod holds;
pub mod job_ends;
mod job_views;
pub mod jobs;
pub mod kpis;
pub mod ledger;
pub mod notifications;
pub mod ops;
pub mod ops_jobs;
pub mod ops_queues;
pub mod ops_schedules;
pub mod ops_workers;
pub mod plans;
pub mod purchases;
mod reads;
pub mod replays;
pub mod statements;
pub mod streams;
pub mod subscription;
pub mod usage;
pub mod workers;
pub mod workspaces;

/// Registers every route, for the document and for a server with one port.
pub fn configure(config: &mut ServiceConfig<'_>) {
    config.configure(configure_without_metrics).service(health::get_metrics);
}

/// Registers what a port for operators serves.
pub fn configure_operations(config: &mut ServiceConfig<'_>) {
    config.configure(configure_probes).service(health::get_metrics);
}

fn configure_probes(config: &mut ServiceConfig<'_>) {
    config.service(health::get_livez).service(health::get_readyz);
}

/// Registers what operators see and do.
fn configure_acts(config: &mut ServiceConfig<'_>) {
    config
        .service(ops::list_consumers)
        .service(ops::pause_consumer)
        .service(ops::resume_consumer)
        .service(ops::rebuild_consumer)
        .service(ops_queues::list_queues)
        .service(ops_queues::change_queue)
        .service(ops_queues::get_queue_scale)
        .service(ops_queues::explain_routes)
        .service(ops_jobs::list_queued_jobs)
        .service(ops_jobs::get_any_job)
        .service(ops_jobs::cancel_any_job)
        .service(ops_workers::list_workers)
        .service(ops_workers::drain_worker)
        .service(ops_workers::resume_worker)
        .service(ops_schedules::list_schedules)
        .service(ops_schedules::pause_schedule)
        .service(ops_schedules::resume_schedule)
        .service(ops_schedules::run_schedule)
        .service(dead_letters::list_dead_letters)
        .service(replays::replay_dead_letters)
        .service(replays::get_replay)
        .service(replays::discard_dead_letter)
        .service(streams::list_streams)
        .service(audit::list_operator_acts);
}

/// Registers what the main port serves beside a port for operators.
pub fn configure_without_metrics(config: &mut ServiceConfig<'_>) {
    config
        // Paths are matched, and listed in the document, in this order: each example can be sent after those before it.
        .service(workspaces::put_workspace)
        .service(workspaces::get_workspace)
        .service(credits::purchase_credits)
        .service(credits::deduct_credits)
        .service(credits::get_credits)
        .service(purchases::list_purchases)
        .service(grants::grant_credits)
        .service(grants::list_grants)
        .service(grants::get_grant)
        .service(grants::void_grant)
        .service(holds::place_hold)
        .service(holds::list_holds)
        .service(holds::get_hold)
        .service(holds::extend_hold)
        .service(holds::capture_hold)
        .service(holds::release_hold)
        .service(usage::list_features)
        .service(usage::list_usage)
        .service(usage::get_usage_log)
        .service(usage::refund_usage)
        .service(purchases::reverse_purchase)
        .service(ledger::list_ledger)
        .service(analytics::get_usage_analytics)
        .service(statements::list_statements)
        .service(statements::get_statement)
        .service(subscription::change_subscription)
        .service(subscription::cancel_subscription)
        .service(subscription::resume_subscription)
        .service(subscription::get_subscription)
        .service(credits::reset_credits)
        .service(notifications::list_notifications)
        .service(jobs::submit_job)
        .service(jobs::list_jobs)
        .service(jobs::get_job)
        .service(jobs::cancel_job)
        .service(workers::register_worker)
        .service(workers::lease_jobs)
        .service(workers::send_heartbeat)
        .service(job_ends::complete_jobs)
        .service(job_ends::fail_jobs)
        .service(job_ends::complete_job)
        .service(job_ends::fail_job)
        .service(job_ends::release_job)
        .service(events::list_events)
        .service(events::get_event)
        .service(plans::list_plans)
        .service(kpis::get_kpis)
        .configure(configure_acts)
        .service(health::get_openapi)
        .service(health::get_event_schema)
        .configure(configure_probes);
}
