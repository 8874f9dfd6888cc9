//! The primary PostgreSQL dies under load, and its synchronous standby takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

use crate::BOUGHT_CREDITS;
use crate::load::{Client, Load, deduct_path, one_credit, workspace};
use crate::processes::{Billing, Postgres, Redis};

/// `FAILOVERS` asks for more.
const FAILOVERS: u32 = 2;
/// From the death of the primary to the first command that is acknowledged.
const MAX_OUTAGE: Duration = Duration::from_secs(10);

/// One address for whichever server is the primary, as a proxy or a virtual address gives.
struct Address {
    port: u16,
    primary: Arc<AtomicU16>,
}

impl Address {
    async fn of(primary: &Postgres) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address =
            Self { port: listener.local_addr().unwrap().port(), primary: Arc::new(AtomicU16::new(primary.port)) };
        let port = Arc::clone(&address.primary);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let port = port.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        address
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn point_to(&self, primary: &Postgres) {
        self.primary.store(primary.port, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_when_a_synchronous_standby_takes_over() {
    let failovers = std::env::var("FAILOVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(FAILOVERS);
    let mut primary = Postgres::create().await;
    let mut standby = primary.create_standby().await;
    primary.wait_for_standby(true).await;
    let address = Address::of(&primary).await;
    let redis = Redis::create();
    let mut billing = Billing::create_with(Some(address.url()), Some(&redis), &[]).await;
    let load = Load::start(&billing, BOUGHT_CREDITS).await;
    let client = Client::new(&billing);
    for failover in 1..=failovers {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        primary.kill();
        standby.promote();
        address.point_to(&standby);
        let promoted = begun.elapsed();
        client.post(&deduct_path(workspace(0)), &format!("failover-{failover}"), &one_credit()).await;
        let outage = begun.elapsed();
        println!("failover {failover}: promoted after {promoted:?}, first answer after {outage:?}");
        assert!(outage < MAX_OUTAGE, "no answer for {outage:?}");
        primary = standby;
        standby = primary.create_standby().await;
        primary.wait_for_standby(true).await;
    }
    let acknowledged = load.finish().await;
    acknowledged.verify_with(&billing, &[(workspace(0), i64::from(failovers))]).await;
    billing.wait_until_published().await;
    assert!(billing.run(&["outbox", "verify"]), "the streams equal the outbox");
    billing.stop();
    assert!(billing.run(&["verify"]), "every invariant holds");
}
