//! The list of all tests, and the macro that runs them on one kind of database.

macro_rules! run_all {
    ($database:ty; $($module:ident { $($test:ident,)+ })+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let db = <$database as $crate::database::TestDatabase>::create().await;
                $crate::$module::$test(&db).await;
                $crate::database::TestDatabase::destroy(db).await;
            }
        )+)+
    };
}

macro_rules! suite {
    ($database:ty) => {
        run_all! {
            $database;
            round_trips {
                a_row_of_every_kind_with_every_field_set_is_read_as_it_was_written,
                a_row_of_every_kind_with_every_optional_field_unset_is_read_as_it_was_written,
                amounts_at_both_bounds_survive,
                microseconds_survive_in_the_first_and_the_last_year,
                an_updated_row_is_read_with_its_new_values,
                open_grants_are_loaded_in_burn_order_and_closed_ones_are_not,
                unknown_keys_load_nothing,
                used_payment_references_and_newest_plans_are_loaded_when_asked_for,
                the_sources_of_grants_are_loaded_when_asked_for,
            }
            writes {
                a_dropped_transaction_leaves_nothing,
                a_workspace_with_another_version_is_a_conflict,
                stale_workspaces_are_found_by_their_version,
                an_optimistic_write_matches_a_locked_one,
                an_optimistic_write_of_other_rows_matches_too,
                a_used_idempotency_key_is_a_conflict_and_nothing_is_written,
                a_used_payment_reference_is_a_conflict_and_nothing_is_written,
                a_promotion_may_share_the_payment_reference_of_its_purchase,
                a_debt_beyond_the_overdraft_is_corrupt_and_nothing_is_written,
                an_update_of_a_row_that_does_not_exist_is_refused,
                rows_that_history_refers_to_cannot_be_deleted,
                a_second_reset_of_a_period_is_a_conflict,
                history_can_be_neither_updated_nor_deleted,
                write_transactions_on_one_partition_are_serial,
                a_batch_of_many_workspaces_is_one_change_set,
            }
            reads {
                an_unknown_workspace_is_none,
                a_snapshot_without_locks_has_the_rows_that_are_loaded_with_locks,
                usage_pages_have_no_gap_and_no_repetition_in_either_order,
                usage_is_filtered_by_feature_and_time,
                the_ledger_is_paged_and_filtered_by_grant_and_time,
                a_page_says_whether_there_is_more,
                time_ranges_are_exact_at_their_bounds,
                entries_of_one_instant_are_paged_by_their_numbers,
                the_last_entry_until_an_instant_is_found_in_its_own_workspace,
                a_usage_log_is_found_by_its_id_in_its_own_workspace,
                events_of_one_workspace_go_forwards,
                events_of_all_are_limited_per_partition,
                an_event_is_found_only_by_its_own_workspace,
                a_period_that_is_over_is_due,
                a_grant_that_expired_unbooked_is_due_once_per_workspace,
                many_expired_grants_of_one_workspace_do_not_slow_the_query,
                an_expiry_warning_is_due_until_it_was_given_or_is_too_late,
                purchases_are_paged_with_their_bonuses_and_found_by_their_payments,
                grants_are_paged_by_their_state_and_found_by_their_ids,
                a_live_store_answers_a_ping,
            }
            holds {
                a_hold_with_every_field_set_is_read_as_it_was_written,
                only_open_holds_are_in_a_state_and_any_is_found_by_its_id,
                holds_are_paged_by_their_state,
                an_open_hold_that_has_expired_is_due,
                a_hold_that_does_not_match_its_grants_its_events_or_its_usage_is_found,
            }
            refunds_and_reversals {
                refunds_and_reversals_are_summed_up_when_asked_for,
                a_refund_or_a_reversal_that_does_not_match_is_found,
            }
            plans {
                a_plan_is_stored_once_and_again_without_effect,
                a_version_with_another_definition_is_a_conflict,
                the_newest_version_of_every_plan_is_listed,
                a_plan_that_is_left_out_is_retired_until_it_comes_back,
                an_older_version_is_kept_as_history,
                an_invalid_plan_is_refused,
                the_source_of_events_is_the_one_that_was_stored_first,
            }
            outbox {
                a_first_lease_takes_every_partition,
                a_lease_in_force_is_left_to_its_owner,
                renewing_keeps_the_epoch_and_taking_over_raises_it,
                a_released_lease_is_free_at_once,
                heads_and_reads_follow_the_outbox,
                a_recorded_batch_continues_where_the_last_one_ended,
                a_lost_lease_records_nothing,
                partitions_are_recorded_together_but_for_one_whose_lease_is_lost,
                a_new_generation_starts_empty_and_clears_a_divergence,
                the_status_shows_unpublished_events,
                the_view_shows_which_events_are_published,
                the_floor_follows_the_time_of_publication_and_never_falls,
                a_lost_lease_does_not_raise_the_floor,
                a_new_generation_begins_at_the_floor,
                old_batches_are_deleted_in_bounded_steps_and_those_from_the_floor_on_are_kept,
            }
            consumers {
                a_fresh_database_has_a_running_consumer_at_the_beginning,
                consumer_leases_are_taken_kept_taken_over_and_released,
                a_cursor_moves_with_its_rows,
                a_cursor_that_is_elsewhere_is_a_conflict_and_nothing_is_written,
                rows_that_the_database_refuses_are_corrupt_and_nothing_is_written,
                dead_letters_and_parked_workspaces_are_written_with_the_cursor,
                a_letter_is_changed_only_while_it_is_open,
                a_build_is_switched_to_only_if_it_is_being_built,
                only_a_running_consumer_is_tripped,
                as_of_is_the_cursor_and_the_first_event_behind_it,
                usage_is_summed_up_in_each_grouping_and_page_by_page,
            }
            jobs {
                a_job_is_read_as_it_was_written_in_every_table,
                what_is_known_of_sent_jobs_is_found_by_their_ids_keys_and_lines,
                ready_jobs_are_claimed_once_and_the_lowest_rank_first,
                a_claim_knows_the_queue_and_what_runs_in_it,
                jobs_are_found_when_their_time_has_come_or_their_lease_is_over,
                a_job_that_is_over_leaves_the_others_with_its_attempts_and_its_letter,
                jobs_that_were_set_aside_are_found_by_their_workspace,
                heartbeats_change_the_leases_and_the_workers_that_are_found,
                workers_are_registered_changed_and_noted_as_gone,
                a_schedule_fires_once_and_is_changed_by_operators,
                holds_that_need_something_are_found,
                jobs_of_a_workspace_are_listed_the_newest_first_whether_over_or_not,
                a_queue_is_created_once_and_changed_with_its_record,
                finished_jobs_are_deleted_with_their_attempts_unless_their_letter_is_open,
            }
            cleaning {
                usage_by_the_hour_and_notifications_are_deleted_when_they_are_old,
                dead_letters_are_deleted_some_time_after_they_were_resolved,
            }
            kpis {
                key_figures_are_summed_up_in_each_step_and_group_page_by_page,
                what_is_deferred_runs_on_from_the_first_day_in_every_question,
                many_rows_are_read_in_shorter_spans,
                a_page_that_has_read_much_is_short_and_the_next_goes_on,
                a_place_outside_the_question_shows_nothing_outside_it,
                a_sum_that_no_number_can_hold_is_an_error,
                as_of_of_the_server_is_every_cursor_and_the_oldest_event_behind_one,
            }
            migrations {
                every_table_has_the_columns_that_its_descriptor_says,
                a_database_of_another_schema_is_refused_with_instructions,
            }
            statements {
                statements_are_read_as_they_were_written,
                a_closed_statement_never_changes_and_is_kept_while_its_build_is_in_use,
                a_statement_that_does_not_match_is_found,
                a_build_that_is_being_deleted_has_no_findings,
            }
            notifications {
                what_notifications_must_know_is_replaced,
                notifications_are_listed_by_event_and_by_kind,
                the_first_notification_of_a_key_is_kept_and_never_changes,
            }
            audits {
                a_correct_database_has_no_findings,
                a_changed_balance_is_found,
                a_missing_usage_log_is_found,
                a_gap_in_the_ledger_is_found,
                a_missing_event_is_found,
                a_changed_grant_is_found,
                a_changed_counter_is_found,
                usage_without_a_counter_is_found,
                a_grant_or_a_void_without_its_entry_or_event_is_found,
                a_refused_command_with_an_entry_is_found,
                a_refusal_without_its_event_is_found,
                a_second_event_of_one_deduction_is_found,
                an_entry_that_names_a_foreign_grant_is_found,
                a_command_of_no_workspace_is_found,
                a_doubled_number_is_found,
                a_number_given_twice_is_found_even_without_a_gap,
                an_event_of_no_command_is_found,
                history_that_is_not_in_order_is_found,
                rows_that_were_recorded_at_another_instant_than_their_command_are_found,
                events_out_of_order_are_found,
                findings_are_limited_per_invariant,
            }
        }
    };
}
