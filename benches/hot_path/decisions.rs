//! Pure: deciding one command, folding a batch, writing an event.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use visionscope_billing::domain::batch::{Batch, EventWriter};
use visionscope_billing::domain::commands::{self, Effects};
use visionscope_billing::domain::event::EventData;
use visionscope_billing::http::render::JsonRender;

use crate::world::World;

pub fn decide(c: &mut Criterion) {
    let (mut world, _) = World::of(1);
    let envelope = world.deductions(1).remove(0);
    c.bench_function("decide/deduct", |b| b.iter(|| commands::decide(black_box(&world.snapshot), &envelope)));
}

pub fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for size in [1, 16, 256] {
        let (mut world, _) = World::of(256);
        let envelopes = world.deductions(size);
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_batched(
                || world.snapshot.clone(),
                |snapshot| {
                    let mut batch = Batch::new(snapshot, &JsonRender, &world.contract);
                    for envelope in &envelopes {
                        black_box(batch.run(envelope)).unwrap();
                    }
                    batch.finish()
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

pub fn event(c: &mut Criterion) {
    let (mut world, _) = World::of(1);
    let envelope = world.deductions(1).remove(0);
    let data = consumed(&world, &envelope);
    c.bench_function("event/check_and_write", |b| b.iter(|| world.contract.write(black_box(&data), None).unwrap()));
}

/// The data of the event that a deduction raises.
fn consumed(world: &World, envelope: &commands::Envelope) -> EventData {
    match commands::decide(&world.snapshot, envelope) {
        commands::Decision::Accepted { effects, .. } => {
            let Effects { mut events, .. } = *effects;
            events.remove(0).1
        }
        other => panic!("{other:?}"),
    }
}
